"""Who is here of the appservices that come to us, and holds its lane meanwhile."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from typing import Protocol
from uuid import UUID

from appservice_bridge.delivery.destination import Destination
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.observing import UNOBSERVED, DeliveryObserver
from appservice_bridge.storage import connected
from appservice_bridge.storage.database import Database
from appservice_bridge.storage.leases import Lease
from appservice_bridge.storage.notifications import OUTBOX, notify


class NotServedError(BridgeError):
    """This worker cannot serve the appservice; it should come again, or to another worker."""


class Hold(Protocol):
    """One connection or request of an appservice, and the lane that it holds."""

    @property
    def lease(self) -> Lease:
        """The right to the lane."""

    def look(self) -> None:
        """Something was appended."""

    def end_rest(self) -> None:
        """Something waits and is due, by the database's clock."""

    def lose(self) -> None:
        """A newer one has the lane: end at once."""

    def finish(self) -> None:
        """The worker ends: end when nothing is in flight."""


class Holds:
    """The newest hold of each lane that this worker has; tokens say which is newer."""

    def __init__(
        self,
        database: Database,
        worker_id: UUID,
        destinations: Mapping[str, Destination],
        observer: DeliveryObserver = UNOBSERVED,
    ) -> None:
        self.database = database
        self.destinations = destinations
        self.observer = observer
        self.serving: set[asyncio.Task[None]] = set()
        self.stopping = False
        self._worker_id = worker_id
        self._here: dict[str, Hold] = {}
        # One DB transaction at a time for each: however often one asks, others get connections.
        self.gates: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def count(self) -> int:
        """How many are here."""
        return len(self._here)

    def get(self, appservice_id: str) -> Hold | None:
        """Who holds the lane here."""
        return self._here.get(appservice_id)

    async def take(self, appservice_id: str, *, asked: bool = False) -> Lease:
        """Take a lane for who just came, wherever it is held.

        Dying after the commit leaves a lane that nobody serves until the appservice comes again,
        which it does, for its connection died, too.

        Raises:
            NotServedError: the worker ends, or the lane is gone.
            DatabaseUnavailableError: it cannot be taken now.
        """
        async with self.gates[appservice_id]:
            if self.stopping:
                raise NotServedError("this worker ends")
            async with self.database.transaction() as conn:
                lease = await connected.take(conn, self._worker_id, appservice_id, asked=asked)
                if not asked:
                    await notify(conn, OUTBOX)  # who had it looks at once
        if lease is None:
            raise NotServedError("there is no such lane")
        return lease

    def enter(self, hold: Hold) -> None:
        """Make it the one that holds the lane here, or lose it: the newer stays."""
        older = self._here.get(hold.lease.appservice_id)
        if older is not None and older.lease.token > hold.lease.token:
            hold.lose()
            return
        self._here[hold.lease.appservice_id] = hold
        if older is not None:
            older.lose()

    def leave(self, hold: Hold) -> None:
        """It is here no more."""
        if self._here.get(hold.lease.appservice_id) is hold:
            del self._here[hold.lease.appservice_id]

    async def look(self) -> None:
        """End what lost its lane to a newer one at another worker.

        Raises:
            DatabaseUnavailableError: not now.
        """
        here = list(self._here.values())
        if not here:
            return
        async with self.database.transaction() as conn:
            kept = await connected.still_held(conn, [hold.lease for hold in here])
        for hold in here:
            if hold.lease not in kept:
                hold.lose()

    async def finish(self, seconds: float) -> None:
        """Let what is in flight end, take nobody in, and cut off who takes longer."""
        self.stopping = True
        for hold in list(self._here.values()):
            hold.finish()
        if self.serving:
            _, late = await asyncio.wait(self.serving, timeout=seconds)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
