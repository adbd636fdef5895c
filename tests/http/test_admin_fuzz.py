"""Whatever is asked at the admin port: a refusal in Matrix's words, never a fault, and it lives."""

import asyncio
import http.client
import json
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.bridge import Files, registration, worker_process, write_files
from tests.support.facts import Connection
from tests.support.reloading import RELOAD, with_tokens

SOME: Final = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
PRINTABLE: Final = st.text(alphabet=st.characters(min_codepoint=0x21, max_codepoint=0x7E))
METHODS: Final = st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
STARTS: Final = st.sampled_from(["/", "/ready", "/health", "/_appservice_bridge/v1/", RELOAD])
TOKENS: Final = (
    st.sampled_from(["Bearer secret-viewer", "Bearer secret-operator", "Bearer", "Basic eDp5"])
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
    files = with_tokens(write_files(tmp_path, database, [registration("bot", None)]))

    @SOME
    @given(METHODS, STARTS, PRINTABLE, TOKENS, st.binary(max_size=40))
    @example("GET", RELOAD, "", "Bearer secret-viewer", b"x")
    @example("POST", RELOAD, "?x=%00", "Bearer secret-operator", b"{")
    def push(method: str, start: str, rest: str, token: str | None, body: bytes) -> None:
        assert ask(files, method, start + rest.replace("#", ""), token, body) < 500

    async with worker_process(files) as one:
        await asyncio.to_thread(push)
        assert one.process is not None
        assert one.process.returncode is None
        assert await asyncio.to_thread(ask, files, "GET", "/ready", None, b"") == 200
