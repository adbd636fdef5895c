"""The websocket that mautrix bridges speak: they connect, and get their transactions over it."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Final

import aiohttp
import orjson
import structlog
from aiohttp import WSMsgType, web

from appservice_bridge.delivery.connected_lanes import ConnectedLanes
from appservice_bridge.delivery.destination import Destination
from appservice_bridge.delivery.holds import NotServedError
from appservice_bridge.delivery.websocket_sender import Ending, WebsocketSender, reply_to
from appservice_bridge.domain.transport import Transport
from appservice_bridge.http.answers import error
from appservice_bridge.http.as_tokens import AsTokens
from appservice_bridge.storage.database import DatabaseUnavailableError
from appservice_bridge.storage.leases import Lease

log = structlog.get_logger(__name__)

PATH: Final = "/_matrix/client/unstable/fi.mau.as_sync"
HEARTBEAT_SECONDS: Final = 30.0  # a peer that is silent so long is asked, and has half of it left
CLOSE_SECONDS: Final = 2.0
REPLY_SECONDS: Final = 10.0
MAX_MESSAGE_BYTES: Final = 262_144
MOST_UNASKED: Final = 500  # messages in a second that answer nothing; more is a flood
MOST_PONGS: Final = 10  # in a second: while pongs wait to be written, a flood could pile up unseen
_BYTES_A_MESSAGE: Final = 4096  # a larger one counts for so many
_MESSAGES: Final = frozenset({WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.PING, WSMsgType.PONG})
_CODES: Final = {
    Ending.REPLACED: 4001,
    Ending.UNACKNOWLEDGED: 4002,
    Ending.GOING_AWAY: aiohttp.WSCloseCode.GOING_AWAY,
    Ending.FLOODED: aiohttp.WSCloseCode.POLICY_VIOLATION,
    Ending.FAILED: aiohttp.WSCloseCode.INTERNAL_ERROR,
    Ending.GONE: aiohttp.WSCloseCode.OK,
}


class AsSync:
    """Takes the connections. It stands on the relay's listener, which appservices can reach.

    No message that comes over a connection ends more than that connection.
    """

    def __init__(self, as_tokens: AsTokens, lanes: ConnectedLanes) -> None:
        self._as_tokens = as_tokens
        self._lanes = lanes

    def add_to(self, app: web.Application) -> None:
        """Add the route to the relay's application, which shapes errors."""
        app.router.add_get(PATH, self._connect, allow_head=False)

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        destination = self._as_tokens.served(request, Transport.WEBSOCKET)
        if isinstance(destination, web.Response):
            return destination
        websocket = web.WebSocketResponse(
            timeout=CLOSE_SECONDS,
            heartbeat=HEARTBEAT_SECONDS,
            autoping=False,  # a flood of pings is to be noticed
            compress=False,
            max_msg_size=MAX_MESSAGE_BYTES,
        )
        if not websocket.can_prepare(request):
            return error(400, "M_UNRECOGNIZED", "this is a websocket: ask for an upgrade")
        try:
            lease = await self._lanes.take(destination.registration.id)
        except (NotServedError, DatabaseUnavailableError) as refused:
            log.warning("websocket.refused", reason=str(refused))
            return error(503, "M_UNKNOWN", "appservice_bridge cannot serve you now; come again")
        try:
            await websocket.prepare(request)
        except BaseException:
            await self._lanes.give_back(lease)
            raise
        await _Connection(self._lanes, lease, destination, websocket, request).run()
        return websocket


class _Connection:
    """One connection, from its first message to its end."""

    def __init__(
        self,
        lanes: ConnectedLanes,
        lease: Lease,
        destination: Destination,
        websocket: web.WebSocketResponse,
        request: web.Request,
    ) -> None:
        self._lanes = lanes
        self._lease = lease
        self._websocket = websocket
        self._transport = request.transport
        self._sender = WebsocketSender(
            self._write, timeout_seconds=destination.policy.timeout_seconds
        )
        self._writing: set[asyncio.Task[None]] = set()
        self._unasked, self._since = 0, 0.0
        self._log = log.bind(appservice=lease.appservice_id)

    async def run(self) -> None:
        self._log.info("websocket.connected")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._lanes.serve(self._lease, self._sender))
                reading = group.create_task(self._read())
                await self._sender.over.wait()
                await self._close()
                reading.cancel()
        except* Exception as faults:  # the appservice connects again, and others go on
            for fault in faults.exceptions:
                self._log.error("websocket.failed", error=type(fault).__name__)
            await self._close()
        finally:
            self._cut()
        self._log.info("websocket.ended", ending=self._sender.ending)

    async def _write(self, message: bytes, kind: WSMsgType = WSMsgType.TEXT) -> None:
        """Write, or wait until the peer reads.

        Who waits may be cancelled, the waiting itself not: aiohttp hands the same future to all
        who wait for a peer, and one that was cancelled would cancel the closing, too.
        """
        writing = asyncio.create_task(self._websocket.send_frame(message, kind))
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
        await asyncio.shield(writing)

    async def _close(self) -> None:
        """Say why, and wait a little for the other side."""
        ending = self._sender.ending or Ending.FAILED
        why = orjson.dumps({"command": "disconnect", "status": ending})
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(2 * CLOSE_SECONDS):
                await self._websocket.close(code=_CODES[ending], message=why)

    def _cut(self) -> None:
        """Leave nothing behind that a peer who does not read could keep open."""
        if self._transport is not None:
            self._transport.abort()

    async def _read(self) -> None:
        try:
            while (asked := await self._heard_next()) is not None:
                if not asked and self._unasked > MOST_UNASKED:
                    self._sender.end(Ending.FLOODED)
                    return
        except (TimeoutError, OSError):
            pass  # it does not read what it asked for, or is gone
        finally:
            self._sender.end(Ending.GONE)

    async def _heard_next(self) -> bool | None:
        """Whether the next message answers what is in flight; None: there is none any more."""
        message = await self._websocket.receive()
        if message.type is WSMsgType.TEXT and await self._hear(message.data):
            return True
        if message.type is WSMsgType.PING and self._unasked < MOST_PONGS:
            await _in_time(self._write(message.data, WSMsgType.PONG))
        if message.type not in _MESSAGES:
            return None
        self._count(len(message.data))
        return False

    async def _hear(self, text: str) -> bool:
        """Whether it was the answer to what is in flight; what is no message is passed over."""
        try:
            message = orjson.loads(text)
        except ValueError:
            return False
        if not isinstance(message, dict):
            return False
        if self._sender.settle(message):
            return True
        if reply := reply_to(message):
            await _in_time(self._write(reply))
        return False

    def _count(self, length: int) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._since > 1:
            self._unasked, self._since = 0, now
        self._unasked += 1 + length // _BYTES_A_MESSAGE


async def _in_time(writing: Awaitable[None]) -> None:
    """Write to a peer that may not read.

    Raises:
        TimeoutError: it does not.
    """
    async with asyncio.timeout(REPLY_SECONDS):
        await writing
