"""Whatever is asked at the admin port: a refusal in Matrix's words, never a fault, and it lives."""

import asyncio
import http.client
import json
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from appservice_bridge.http.admin_api import description
from tests.support.bridge import Files, registration, worker_process, write_files
from tests.support.facts import Connection
from tests.support.reloading import RELOAD, ROOT, with_tokens

SOME: Final = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
PRINTABLE: Final = st.text(alphabet=st.characters(min_codepoint=0x21, max_codepoint=0x7E))
METHODS: Final = st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
IDS: Final = st.sampled_from(
    ["bot", "nobody", "%00", "%FF", "%2F", "%ED%A0%80", "%f0%9f%99%82", "."]
)
ROUTES: Final = [ROOT + path for path in description()["paths"] if path != "/events"]
STARTS: Final = st.sampled_from(["/", "/ready", "/health", ROOT + "/"]) | st.builds(
    lambda route, id_: route.replace("{appservice_id}", id_), st.sampled_from(ROUTES), IDS
)
RESTS: Final = PRINTABLE | st.builds(
    "?{}={}".format,
    st.sampled_from(["limit", "before", "after", "minutes", "appservice"]),
    PRINTABLE | st.integers().map(str) | st.sampled_from(["%00", "%ED%A0%80", "0-" + "0" * 32]),
)
VALUES: Final = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=40)
    | st.uuids().map(str),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
MEMBERS: Final = st.sampled_from(
    ["split", "ids", "since_seconds", "transaction", "dry_run", "other"]
)
BODIES: Final = st.binary(max_size=40) | st.dictionaries(MEMBERS, VALUES, max_size=2).map(
    lambda members: json.dumps(members).encode()
)
ADMIN: Final = "Bearer secret-admin"
BOT: Final = ROOT + "/appservices/bot"
TOKENS: Final = (
    st.sampled_from(["Bearer secret-viewer", "Bearer secret-operator", "Bearer", "Basic eDp5"])
    | st.just("Bearer secret-admin")
    | PRINTABLE.map("Bearer {}".format)
    | st.none()
)


def ask(files: Files, method: str, target: str, token: str | None, body: bytes) -> int:
    connection = http.client.HTTPConnection(urlsplit(files.admin_url).netloc, timeout=30)
    try:
        headers = {} if token is None else {"Authorization": token}
        connection.request(method, target, body, headers)
        answer = connection.getresponse()
        said = answer.read()
        if answer.status >= 400 and method != "HEAD":
            assert set(json.loads(said)) >= {"errcode", "error"}
        return answer.status
    finally:
        connection.close()


async def test_no_path_token_or_body_makes_the_admin_port_fail(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = with_tokens(
        write_files(tmp_path, database, [registration("bot", "http://127.0.0.1:9")])
    )

    @SOME
    @given(METHODS, STARTS, st.just("") | RESTS, TOKENS, BODIES)
    @example("POST", f"{BOT}/replay", "", ADMIN, b'{"since_seconds": 1' + b"0" * 400 + b"}")
    @example("POST", f"{BOT}/replay", "", ADMIN, b'{"transaction": "\\u0000\\ud800"}')
    @example("POST", f"{ROOT}/dead-letters/discard", "", ADMIN, b'{"ids": ["\\ud800"]}')
    @example("GET", f"{BOT}/dead-letters", "?after=99999999999999999-" + "f" * 32, ADMIN, b"")
    @example("GET", f"{BOT}/transactions", "?before=9223372036854775807&limit=500", ADMIN, b"")
    @example("GET", f"{BOT}/transactions", "?before=9223372036854775808", ADMIN, b"")
    @example("GET", RELOAD, "", "Bearer secret-viewer", b"x")
    @example("POST", RELOAD, "?x=%00", "Bearer secret-operator", b"{")
    def push(method: str, start: str, rest: str, token: str | None, body: bytes) -> None:
        assert ask(files, method, start + rest.replace("#", ""), token, body) < 500

    async with worker_process(files) as one:
        await asyncio.to_thread(push)
        assert one.process is not None
        assert one.process.returncode is None
        assert await asyncio.to_thread(ask, files, "GET", "/ready", None, b"") == 200
