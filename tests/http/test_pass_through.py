"""Questions reach the appservice as they were asked, and its answer comes back as it was given."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from appservice_bridge.http import pass_through
from tests.support.bridge import registration
from tests.support.relaying import PING, Homeserver, relaying
from tests.support.wire import RawServer, answer_of, raw_server

TYPE: Final = 'application/json; charset="utf-8"'
TARGETS: Final = [
    "/_matrix/app/v1/users/%40irc_a%3Aexample.org",
    "/_matrix/app/v1/users/@irc_a:example.org",
    "/_matrix/app/v1/rooms/%23room%3Aexample.org",
    "/_matrix/app/v1/rooms/%23a%2Fb%25%3F%20%C3%BC%FF%0A%3Aexample.org",
    "/_matrix/app/v1/thirdparty/protocol/irc",
    "/_matrix/app/v1/thirdparty/location/irc?channel=%23a+b%2B&server=a%26b&empty=&flag&a=1&a=2",
    "/_matrix/app/v1/thirdparty/user?userid=%40a%3Ab",
    "/_matrix/app/unstable/thirdparty/protocol/irc",
    "/users/%40irc_a%3Aexample.org",
    "/rooms/%23room%3Aexample.org?x=%2F/%3D=",
]


@asynccontextmanager
async def asked(directory: Path, database: str) -> AsyncIterator[tuple[RawServer, Homeserver]]:
    """An appservice whose every byte we write, and a homeserver that asks it through the relay."""
    async with (
        raw_server() as bot,
        relaying(directory, database, [registration("bot", f"{bot.url}/base")]) as hs,
    ):
        bot.answer = answer_of("200 OK", b"{}")
        yield bot, hs


async def test_path_and_query_reach_the_appservice_as_they_were_encoded(
    database: str, tmp_path: Path
) -> None:
    async with asked(tmp_path, database) as (bot, hs):
        for target in TARGETS:
            assert (await hs.ask("GET", target)).status == 200
    assert [heard.line for heard in bot.heard] == [f"GET /base{one} HTTP/1.1" for one in TARGETS]
    assert {heard.headers["authorization"] for heard in bot.heard} == {"Bearer hs_bot"}


async def test_the_token_in_a_query_is_not_handed_on(database: str, tmp_path: Path) -> None:
    path = "/_matrix/app/v1/thirdparty/user"
    async with asked(tmp_path, database) as (bot, hs):
        for query, left in (
            ("?access_token=hs_bot", ""),
            ("?a=%2F&access_token=hs_bot&b=c+d", "?a=%2F&b=c+d"),
            ("?%61ccess_token=hs_bot&access_tokens=1", "?access_tokens=1"),
        ):
            assert (await hs.ask("GET", path + query, token=None)).status == 200
            assert bot.heard[-1].line == f"GET /base{path}{left} HTTP/1.1"


async def test_key_queries_are_posted_with_their_body(database: str, tmp_path: Path) -> None:
    paths = ["org.matrix.msc3983/keys/claim", "org.matrix.msc3984/keys/query"]
    body = b'{ "@a:b" : {"DEV":["signed_curve25519"], "x":"\\ud800\xff"}}'
    async with asked(tmp_path, database) as (bot, hs):
        for path in paths:
            target, headers = f"/_matrix/app/unstable/{path}", {"Content-Type": TYPE}
            assert (await hs.ask("POST", target, body=body, headers=headers)).status == 200
            assert bot.heard[-1].line == f"POST /base{target} HTTP/1.1"
            assert bot.heard[-1].body == body
            assert bot.heard[-1].headers["content-type"] == TYPE


async def test_the_answer_comes_back_with_its_status_type_and_bytes(
    database: str, tmp_path: Path
) -> None:
    async with asked(tmp_path, database) as (bot, hs):
        for status in (200, 204, 400, 403, 404, 418, 429, 500, 503, 599):
            body = b"" if status == 204 else b'{"errcode" : "M_X", "n":1.10, "\xff":0}'
            bot.answer = answer_of(f"{status} Whatever", body, f"Content-Type: {TYPE}")
            answer = await hs.ask("GET", "/_matrix/app/v1/thirdparty/protocol/irc")
            assert (answer.status, answer.body) == (status, body)
            assert answer.headers["Content-Type"] == TYPE


async def test_a_redirect_is_not_followed(database: str, tmp_path: Path) -> None:
    async with raw_server() as elsewhere, asked(tmp_path, database) as (bot, hs):
        for status in (301, 302, 303, 307, 308):
            bot.answer = answer_of(f"{status} Elsewhere", b"", f"Location: {elsewhere.url}/x")
            assert (await hs.ask("GET", "/_matrix/app/v1/users/x")).status == status
            assert (await hs.ask("POST", PING, body=b"{}")).status == status
        assert elsewhere.heard == []


async def test_an_appservice_that_cannot_be_understood_is_502(
    database: str, tmp_path: Path
) -> None:
    async with asked(tmp_path, database) as (bot, hs):
        for garbage in (
            b"",
            b"garbage\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nxyz",
            b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        ):
            bot.answer = garbage
            for method, path in (("GET", "/_matrix/app/v1/users/x"), ("POST", PING)):
                answer = await hs.ask(method, path)
                assert (answer.status, answer.errcode) == (502, "M_CONNECTION_FAILED"), garbage[:40]


async def test_an_appservice_that_is_away_is_502(database: str, tmp_path: Path) -> None:
    async with raw_server() as gone:
        away = registration("bot", gone.url)
    async with relaying(tmp_path, database, [away]) as hs:
        for method, path in (("GET", "/_matrix/app/v1/rooms/x"), ("POST", PING)):
            answer = await hs.ask(method, path)
            assert (answer.status, answer.errcode) == (502, "M_CONNECTION_FAILED")


async def test_an_appservice_that_does_not_answer_in_time_is_504(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pass_through, "TIMEOUT_SECONDS", 0.2)
    async with asked(tmp_path, database) as (bot, hs):
        bot.answer = None
        for method, path in (("GET", "/_matrix/app/v1/rooms/x"), ("POST", PING)):
            answer = await hs.ask(method, path)
            assert (answer.status, answer.errcode) == (504, "M_CONNECTION_TIMEOUT")


async def test_an_answer_without_end_is_not_kept_in_memory(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pass_through, "MAX_ANSWER_BYTES", 100_000)
    async with asked(tmp_path, database) as (bot, hs):
        bot.answer = answer_of("200 OK", b"x" * 100_000)
        assert (await hs.ask("GET", "/users/x")).body == b"x" * 100_000
        bot.answer = answer_of("200 OK", b"x" * 100_001)
        assert (await hs.ask("GET", "/users/x")).errcode == "M_CONNECTION_FAILED"


async def test_a_query_larger_than_a_transaction_is_refused_as_too_large(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appservice_bridge.http.relay.MAX_BODY_BYTES", 1000)
    async with asked(tmp_path, database) as (bot, hs):
        for path in (PING, "/_matrix/app/unstable/org.matrix.msc3984/keys/query"):
            answer = await hs.ask("POST", path, body=b" " * 1001)
            assert (answer.status, answer.errcode) == (413, "M_TOO_LARGE")
    assert bot.heard == []
