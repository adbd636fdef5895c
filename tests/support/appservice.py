"""A real appservice over HTTP that writes down every request and answers as it is told.

Where the bytes of an answer matter, `by_hand` serves connections instead.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from aiohttp import web

Answer: TypeAlias = Callable[["Request"], "tuple[int, dict[str, str], bytes]"]
Serve: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as it came in; times are monotonic."""

    method: str
    path: str
    token: str
    body: bytes
    began: float

    @property
    def txn_id(self) -> str:
        return self.path.rsplit("/", 1)[1]

    def items(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.body).get(name, [])
        return found


def ok(_request: Request) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, b"{}"


def _set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass(kw_only=True)
class Appservice:
    """What the appservice saw, and how it answers: `answer` may be replaced at any time.

    Attributes:
        slow: seconds that this one request waits for its answer, beside `delay_seconds`.
        open: nothing is answered while it is not set.
    """

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    taken: list[Request] = field(default_factory=list)
    answer: Answer = ok
    delay_seconds: float = 0.0
    slow: Callable[[Request], float] = lambda _: 0.0
    open: asyncio.Event = field(default_factory=_set)
    running: int = 0
    most_running: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def handle(self, request: web.Request) -> web.Response:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._handle(request)
        finally:
            self.running -= 1

    async def _handle(self, request: web.Request) -> web.Response:
        seen = Request(
            method=request.method,
            path=request.rel_url.raw_path,
            token=request.headers.get("Authorization", "").removeprefix("Bearer "),
            body=await request.read(),
            began=time.monotonic(),
        )
        self.requests.append(seen)
        async with self.changed:
            self.changed.notify_all()
        await asyncio.sleep(self.delay_seconds + self.slow(seen))
        await self.open.wait()
        status, headers, body = self.answer(seen)
        if 200 <= status < 300:
            self.taken.append(seen)
        async with self.changed:
            self.changed.notify_all()
        return web.Response(status=status, headers=headers, body=body)

    def items(self, name: str) -> list[dict[str, Any]]:
        """Every item of this field that was taken, a transaction id counting once."""
        first = {request.txn_id: request for request in reversed(self.taken)}
        ordered = sorted(first.values(), key=lambda request: request.began)
        return [item for request in ordered for item in request.items(name)]

    @property
    def to_device(self) -> list[dict[str, Any]]:
        return self.items("de.sorunome.msc2409.to_device")

    @property
    def events(self) -> list[dict[str, Any]]:
        return self.items("events")

    async def until(self, condition: Callable[[], bool], within: float = 60.0) -> None:
        """Wait until something holds of what was seen."""
        async with asyncio.timeout(within), self.changed:
            await self.changed.wait_for(condition)


@asynccontextmanager
async def appservice(port: int = 0) -> AsyncIterator[Appservice]:
    """Serve on loopback for as long as the context lasts."""
    seen = Appservice()
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{tail:.*}", seen.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    host, bound = runner.addresses[0][:2]
    seen.url = f"http://{host}:{bound}"
    try:
        yield seen
    finally:
        await runner.cleanup()


@asynccontextmanager
async def by_hand(serve: Serve) -> AsyncIterator[str]:
    """Serve each connection on loopback with this; gives the url."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.close()


async def next_body(reader: asyncio.StreamReader) -> bytes:
    """The body of the next request of a connection.

    Raises:
        asyncio.IncompleteReadError: the other side has closed it.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = re.search(r"Content-Length: (\d+)", head)
    assert length is not None, head
    return await reader.readexactly(int(length[1]))
