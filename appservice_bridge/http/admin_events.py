"""The overview as server-sent events: computed once for all who listen, and for nobody else."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import structlog
from aiohttp import web

from appservice_bridge.domain.waiting import set_within
from appservice_bridge.http.admin_auth import Role, needs
from appservice_bridge.http.answers import limited
from appservice_bridge.storage.database import DatabaseUnavailableError

log = structlog.get_logger(__name__)

EVERY_SECONDS: Final = 2.0
HEARTBEAT_SECONDS: Final = 10.0
MOST_LISTENERS: Final = 64
AGAIN_SECONDS: Final = 5.0
LONGEST_SECONDS: Final = 900.0  # then whoever listens shows the token again
STUCK_SECONDS: Final = 30.0  # for one event to leave


class Events:
    """Everyone who listens gets the latest; who is slow misses what came in between."""

    def __init__(self, body: Callable[[], Awaitable[bytes]]) -> None:
        self._body = body
        self._listeners: set[asyncio.Event] = set()
        self._wanted = asyncio.Event()
        self._ended = False
        self._latest = b""

    async def run(self, stop: asyncio.Event) -> None:
        """Compute for those who listen until `stop` is set; then their streams end."""
        try:
            while not stop.is_set():
                if not await self._somebody_listens(stop):
                    return
                await self._tell()
                await set_within(stop, EVERY_SECONDS)
        finally:
            self._ended = True
            self._wake()

    async def _somebody_listens(self, stop: asyncio.Event) -> bool:
        """Wait for the first who does; False: it is time to stop."""
        ends = asyncio.create_task(stop.wait())
        wanted = asyncio.create_task(self._wanted.wait())
        try:
            await asyncio.wait((ends, wanted), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ends.cancel()
            wanted.cancel()
        return not stop.is_set()

    async def _tell(self) -> None:
        """While the database is away nothing new is told, and the heartbeat goes on."""
        try:
            self._latest = b"event: overview\ndata: " + await self._body() + b"\n\n"
        except DatabaseUnavailableError as unavailable:
            log.warning("events.rest", reason=unavailable.reason)
        else:
            self._wake()

    def _wake(self) -> None:
        for listener in self._listeners:
            listener.set()

    @needs(Role.VIEWER)
    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Events until the client goes, the worker stops, or the token must be shown again."""
        if len(self._listeners) >= MOST_LISTENERS or self._ended:
            return limited("too many listen already", AGAIN_SECONDS)
        listener = asyncio.Event()
        self._listeners.add(listener)
        self._wanted.set()
        try:
            return await self._write_all(request, listener)
        finally:
            self._listeners.discard(listener)
            if not self._listeners:
                self._wanted.clear()
                self._latest = b""

    async def _write_all(self, request: web.Request, news: asyncio.Event) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        response.headers["X-Accel-Buffering"] = "no"
        await response.prepare(request)
        if self._latest:
            news.set()  # what the others see already
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(LONGEST_SECONDS):
                while not self._ended:
                    told = await set_within(news, HEARTBEAT_SECONDS) and self._latest
                    news.clear()
                    async with asyncio.timeout(STUCK_SECONDS):
                        await response.write(told or b": still here\n\n")
        return response
