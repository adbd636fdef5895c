"""Whatever an appservice sends over its websocket, or asks, ends no worker and no other lane."""

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import WSMsgType
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.appservice import Appservice, appservice
from tests.support.bridge import Files, registration, worker, write_files
from tests.support.connecting import PATH, POLL, connected
from tests.support.relaying import homeserver

SOME: Final = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
TEXT: Final = st.text(max_size=8)
VALUES: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)
IDS: Final = st.integers(min_value=-1, max_value=3) | VALUES
COMMANDS: Final = st.sampled_from(["response", "error", "ping", "transaction", "x"]) | VALUES
DATA: Final = st.fixed_dictionaries({}, optional={"txn_id": VALUES, "code": VALUES}) | VALUES
MESSAGES: Final = st.fixed_dictionaries(
    {}, optional={"id": IDS, "command": COMMANDS, "data": DATA}
).map(lambda value: (WSMsgType.TEXT, json.dumps(value).encode()))
FRAMES: Final = st.lists(
    MESSAGES
    | st.tuples(st.just(WSMsgType.TEXT), st.binary(max_size=30))
    | st.tuples(st.sampled_from([WSMsgType.BINARY, WSMsgType.PING, WSMsgType.PONG]), st.binary()),
    max_size=8,
)
HUGE: Final = b'"' + b"x" * 300_000 + b'"'
DEEP: Final = b"[" * 100_000


class Running:
    """A worker in a thread of its own, so that hypothesis need not know of event loops."""

    def __init__(self, directory: Path, database: str) -> None:
        self.started, self.ended = threading.Event(), threading.Event()
        self._directory, self._database = directory, database
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.files: Files
        self.well: Appservice
        self.loop: asyncio.AbstractEventLoop
        self.stop: asyncio.Event

    def __enter__(self) -> "Running":
        self._thread.start()
        assert self.started.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self._thread.join(60)

    async def _run(self) -> None:
        self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with appservice() as self.well:
                self.files = write_files(
                    self._directory,
                    self._database,
                    [
                        registration("bot", None),
                        registration("ask", None),
                        registration("well", self.well.url),
                    ],
                    appservices={"bot": {"transport": "websocket"}, "ask": {"transport": "poll"}},
                )
                async with worker(self.files):
                    self.started.set()
                    await self.stop.wait()
        finally:
            self.ended.set()

    def do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    async def push(self, to: str, number: int) -> None:
        async with homeserver(self.files) as hs:
            body = b'{"events":[{"event_id":"$%d"}]}' % number
            assert await hs.push(str(number), body, to=to, token=f"hs_{to}") == 200

    async def say(self, frames: list[tuple[WSMsgType, bytes]]) -> None:
        headers = {"Authorization": "Bearer as_bot"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.ws_connect(self.files.relay_url + PATH, autoclose=False) as websocket,
        ):
            try:
                for kind, data in frames:
                    await websocket.send_frame(data, kind)
            except (ConnectionError, aiohttp.ClientError):
                return

    async def still_delivers(self, *, first: str = "") -> None:
        """To others, and to who sent all that: nothing that was pushed was lost or skipped."""
        await self.push("well", 100)
        await self.well.until(lambda: len(self.well.events) == 1)
        await self.push("bot", 100)
        async with connected(self.files) as bot:
            await bot.until(lambda: '"$100"' in "".join(bot.frames))
            assert first in "".join(bot.frames)
        assert not self.ended.is_set()


@pytest.fixture
def running(tmp_path: Path, database: str) -> Iterator[Running]:
    with Running(tmp_path, database) as one:
        yield one


@pytest.mark.filterwarnings("ignore:Do not use the `random`")  # it is the worker that does
def test_no_frame_ends_more_than_its_connection(running: Running) -> None:
    running.do(running.push("bot", 1))  # something is in flight, and no garbage acknowledges it

    @SOME
    @given(FRAMES)
    @example([(WSMsgType.TEXT, HUGE)])
    @example([(WSMsgType.TEXT, DEEP)])
    @example([(WSMsgType.TEXT, b"\xff\xfe")])
    @example([(WSMsgType.TEXT, b'{"id":1,"command":"ping"}')] * 2000)
    @example([(WSMsgType.PING, b"")] * 20_000)
    @example([(WSMsgType.BINARY, b"")] * 2000)
    @example([(WSMsgType.TEXT, b'{"id":1,"command":"response","data":{"txn_id":null}}')] * 3)
    def say(frames: list[tuple[WSMsgType, bytes]]) -> None:
        running.do(running.say(frames))

    say()
    running.do(running.still_delivers(first='"$1"'))


@pytest.mark.filterwarnings("ignore:Do not use the `random`")
def test_no_request_of_who_asks_is_answered_with_a_fault(running: Running) -> None:
    printable = st.text(alphabet=st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=12)
    tokens = st.sampled_from([None, "Bearer as_ask", "Bearer as_bot", "Bearer", "Basic eDp5"])
    paths = st.sampled_from(["/next", "/next?timeout=0", "/next?timeout=", "/", "/x/ack", ""])

    @SOME
    @given(
        st.sampled_from(["GET", "PUT", "POST", "HEAD"]),
        paths | st.builds("/{}/ack".format, printable) | st.builds("/next?{}".format, printable),
        tokens | printable.map("Bearer {}".format),
    )
    @example("PUT", "/%00/ack", "Bearer as_ask")
    @example("PUT", "/ab%ff-1/ack", "Bearer as_ask")
    @example("PUT", "/ab1-99999999999999999999/ack", "Bearer as_ask")
    @example("PUT", "/next/ack", "Bearer as_ask")
    @example("GET", "/next?timeout=%EF%BC%91", "Bearer as_ask")
    @example("GET", "/next?timeout=1&timeout=x", "Bearer as_ask")
    def ask(method: str, path: str, token: str | None) -> None:
        if path.startswith("/next") and "timeout" not in path:
            path += "&timeout=0" if "?" in path else "?timeout=0"
        headers = {} if token is None else {"Authorization": token}
        asked = http.client.HTTPConnection(urlsplit(running.files.relay_url).netloc, timeout=45)
        try:
            asked.request(method, POLL + path, headers=headers)
            answer = asked.getresponse()
            json.loads(answer.read() or b"{}")
        finally:
            asked.close()
        assert answer.status in (200, 204, 400, 401, 403, 404, 405), answer.status

    ask()
    running.do(running.still_delivers())
