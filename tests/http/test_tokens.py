"""Nobody gets anything from the relay without the hs_token of that registration."""

import json
from pathlib import Path

import asyncpg

from tests.support.appservice import appservice
from tests.support.bridge import registration
from tests.support.relaying import PING, TRANSACTIONS, one_bot, relaying

BODY = b'{"events":[{"event_id":"$1"}]}'
GUARDED = [
    ("PUT", TRANSACTIONS + "1"),
    ("PUT", "/transactions/1"),
    ("POST", PING),
    ("GET", "/_matrix/app/v1/users/%40b_1%3Aexample.org"),
    ("GET", "/_matrix/app/v1/thirdparty/location?a=b"),
    ("GET", "/rooms/%23room%3Aexample.org"),
    ("POST", "/_matrix/app/unstable/org.matrix.msc3983/keys/claim"),
]


async def test_without_the_right_token_nothing_is_stored_and_nobody_is_asked(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        both = [registration("bot", bot.url), registration("other", bot.url)]
        async with relaying(tmp_path, database, both) as hs:
            for method, path in GUARDED:
                none = await hs.ask(method, path, token=None, body=BODY)
                assert (none.status, none.errcode) == (401, "M_MISSING_TOKEN"), path
                for wrong in (
                    "wrong",
                    "as_bot",
                    "hs_other",
                    "",
                    "hs_bo",
                    "hs_bott",
                    "Bearer hs_bot",
                ):
                    refused = await hs.ask(method, path, token=wrong, body=BODY)
                    assert (refused.status, refused.errcode) == (403, "M_FORBIDDEN"), (path, wrong)
                mark = "&" if "?" in path else "?"
                in_query = await hs.ask(
                    method, f"{path}{mark}access_token=wrong", token=None, body=BODY
                )
                assert (in_query.status, in_query.errcode) == (403, "M_FORBIDDEN"), path
                two = await hs.ask(method, f"{path}{mark}access_token=wrong", body=BODY)
                assert (two.status, two.errcode) == (403, "M_FORBIDDEN"), path
    assert bot.requests == []
    assert await pg.fetchval("select count(*) from appservice_bridge.relayed") == 0


async def test_the_token_is_taken_from_the_header_or_the_query(
    database: str, tmp_path: Path
) -> None:
    shown = [({"Authorization": "bearer hs_bot"}, ""), ({}, "?access_token=hs%5Fbot")]
    async with one_bot(tmp_path, database) as (bot, hs):
        for number, (headers, query) in enumerate(shown):
            for path in (TRANSACTIONS, "/transactions/"):
                body = json.dumps({"events": [{"event_id": f"${path}{number}"}]}).encode()
                target = f"{path}{number}{query}"
                answer = await hs.ask("PUT", target, token=None, headers=headers, body=body)
                assert (answer.status, answer.body) == (200, b"{}")
        await bot.until(lambda: len(bot.events) == 4)


async def test_an_appservice_that_is_not_registered_here_is_not_found(
    database: str, tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (_, hs):
        for to in ("nobody", "BOT", "bot%00", "%FF", "..", "%2E%2E%2Fbot"):
            answer = await hs.ask("PUT", TRANSACTIONS + "1", to=to, body=BODY)
            assert (answer.status, answer.errcode) == (404, "M_NOT_FOUND"), to


async def test_a_path_the_relay_does_not_serve_is_unrecognized(
    database: str, tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (bot, hs):
        for method, path, status in (
            ("GET", "", 404),
            ("GET", "/a%0Ab", 404),
            ("POST", "/_matrix/app/v1/transactions/1", 405),
            ("PUT", "/_matrix/app/v1/transactions", 404),
            ("PUT", "/_matrix/app/v1/transactions/", 404),
            ("GET", "/_matrix/app/v1/ping", 405),
            ("GET", "/_matrix/app/v1/secrets/x", 404),
            ("DELETE", "/_matrix/app/v1/users/x", 405),
        ):
            answer = await hs.ask(method, path)
            assert (answer.status, answer.errcode) == (status, "M_UNRECOGNIZED"), path
    assert bot.requests == []
