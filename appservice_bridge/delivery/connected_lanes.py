"""Lanes that are served over a connection of the appservice's own."""

import asyncio

import structlog

from appservice_bridge.delivery.holds import Holds
from appservice_bridge.delivery.lane import Lane, Shared
from appservice_bridge.delivery.lease_clock import LeaseClock
from appservice_bridge.delivery.websocket_sender import Ending, WebsocketSender
from appservice_bridge.storage import connected
from appservice_bridge.storage.database import DatabaseUnavailableError
from appservice_bridge.storage.leases import Lease

log = structlog.get_logger(__name__)


class Served:
    """A lane and the connection that it is served over."""

    def __init__(self, lease: Lease, lane: Lane, sender: WebsocketSender) -> None:
        self.lease = lease
        self.stop = asyncio.Event()
        self._lane = lane
        self._sender = sender

    def look(self) -> None:
        """Something was appended."""
        self._lane.look()

    def end_rest(self) -> None:
        """The lane is due by the database's clock."""
        self._lane.end_rest()

    def lose(self) -> None:
        """A newer connection has the lane."""
        self._sender.end(Ending.REPLACED)

    def finish(self) -> None:
        """End when nothing is in flight."""
        self.stop.set()
        self._lane.look()

    async def serve(self) -> None:
        """Deliver until the connection is over, or `finish` was called."""
        over = asyncio.create_task(self._finish_when_over())
        try:
            await self._lane.serve(self.stop)
        finally:
            over.cancel()

    async def _finish_when_over(self) -> None:
        await self._sender.over.wait()
        self.finish()


class ConnectedLanes:
    """Serves the lanes of those who are connected; a newer connection takes over from an older.

    Dying at any point ends the connections; the lanes are taken anew when the appservices connect
    again, and what was not acknowledged is sent again, the same id and bytes.
    """

    def __init__(self, holds: Holds, clock: LeaseClock, shared: Shared) -> None:
        self._holds = holds
        self._shared = shared
        self._clock = clock

    async def take(self, appservice_id: str) -> Lease:
        """Take the lane for a connection that begins.

        Raises:
            NotServedError, DatabaseUnavailableError: not here, not now.
        """
        return await self._holds.take(appservice_id)

    async def serve(self, lease: Lease, sender: WebsocketSender) -> None:
        """Deliver over a connection until it is over; it is, when this returns."""
        policy = self._holds.destinations[lease.appservice_id].policy
        lane = Lane(self._holds.database, lease, policy, sender, self._clock, self._shared)
        served = Served(lease, lane, sender)
        self._holds.enter(served)
        if self._holds.stopping:  # since the lane was taken
            served.finish()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in one
        self._holds.serving.add(task)
        try:
            await served.serve()
            # Only a newer connection takes such a lane.
            sender.end(Ending.GOING_AWAY if self._holds.stopping else Ending.REPLACED)
        except Exception:
            sender.end(Ending.FAILED)
            raise
        finally:
            sender.end(Ending.GOING_AWAY)
            self._holds.leave(served)
            await self.give_back(lease)
            self._holds.serving.discard(task)

    async def give_back(self, lease: Lease) -> None:
        """Let everyone see that nobody holds the lane."""
        try:
            async with self._holds.database.transaction() as conn:
                await connected.give_back(conn, lease)
        except DatabaseUnavailableError as error:
            log.warning("lane.not_handed_back", reason=error.reason)
