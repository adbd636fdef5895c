"""All lanes that this worker holds: leases kept alive, free lanes claimed, rests ended."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import aiohttp
import structlog

from appservice_bridge.delivery.http_sender import HttpSender
from appservice_bridge.delivery.lane import Lane
from appservice_bridge.delivery.lease_clock import LeaseClock
from appservice_bridge.domain.policy import DeliveryPolicy
from appservice_bridge.domain.registration import Registration
from appservice_bridge.domain.waiting import set_within
from appservice_bridge.storage import leases
from appservice_bridge.storage.database import Database, DatabaseUnavailableError
from appservice_bridge.storage.leases import Lease

log = structlog.get_logger(__name__)

LEASE_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 0.5  # how soon another worker's append, or end of a rest, is seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """An appservice that takes delivery, and how it wants it."""

    registration: Registration
    policy: DeliveryPolicy


class Lanes:
    """Claims lanes and serves them; dies with its worker, whose lanes then move to others."""

    def __init__(
        self,
        database: Database,
        worker_id: UUID,
        *,
        name: str,
        destinations: Mapping[str, Destination],
        session: aiohttp.ClientSession,
    ) -> None:
        self._database = database
        self._worker_id = worker_id
        self._name = name
        self._destinations = destinations
        self._session = session
        self._clock = LeaseClock()
        self._lanes: dict[str, Lane] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self.changed = asyncio.Event()

    def leases_hold(self) -> bool:
        """Whether this worker may send now."""
        return self._clock.holds

    def appended(self, appservice_ids: Iterable[str]) -> bool:
        """Let lanes look whose outbox grew; False if one of them is served elsewhere."""
        here = [self._lanes.get(appservice_id) for appservice_id in appservice_ids]
        for lane in here:
            if lane is not None:
                lane.look()
        return None not in here

    async def run(self, stop: asyncio.Event, *, finish_seconds: float = 20.0) -> None:
        """Serve lanes until `stop` is set, finish the requests in flight, hand the lanes back.

        An unexpected error ends all lanes and reaches the caller.
        """
        try:
            async with asyncio.TaskGroup() as group:
                keeping = group.create_task(self._keep_leases(), name="leases")
                looking = group.create_task(self._look_around(group, stop), name="lanes")
                await stop.wait()
                looking.cancel()
                await self._finish(finish_seconds)
                keeping.cancel()
        finally:
            await self._hand_back()

    async def _finish(self, seconds: float) -> None:
        for lane in self._lanes.values():
            lane.look()
        if self._serving:
            _, late = await asyncio.wait(self._serving, timeout=seconds)
            for task in late:
                task.cancel()

    async def _keep_leases(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            asked_at = clock()
            try:
                async with self._database.transaction() as conn:
                    await leases.renew(
                        conn, self._worker_id, name=self._name, lease_seconds=LEASE_SECONDS
                    )
                    await leases.forget_dead(conn)
            except DatabaseUnavailableError as error:
                log.warning("leases.not_renewed", reason=error.reason)
                await asyncio.sleep(0.5)
                continue
            self._clock.extend(asked_at + LEASE_SECONDS)
            await asyncio.sleep(LEASE_SECONDS / 4)

    async def _look_around(self, group: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        while True:
            self.changed.clear()
            try:
                if self._clock.holds:
                    await self._claim_free(group, stop)
                    await self._end_due_rests()
            except DatabaseUnavailableError as error:
                log.warning("lanes.rest", reason=error.reason)
            await set_within(self.changed, LOOK_SECONDS)

    async def _claim_free(self, group: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        wanted = sorted(self._destinations.keys() - self._lanes.keys())
        if not wanted:
            return
        async with self._database.transaction() as conn:
            claimed = await leases.claim(conn, self._worker_id, wanted)
        for lease in claimed:
            lane = self._lane(lease)
            self._lanes[lease.appservice_id] = lane
            name = f"lane:{lease.appservice_id}"
            task = group.create_task(self._serve(lease.appservice_id, lane, stop), name=name)
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _serve(self, appservice_id: str, lane: Lane, stop: asyncio.Event) -> None:
        log.info("lane.claimed", appservice=appservice_id)
        try:
            await lane.serve(stop)
        finally:
            del self._lanes[appservice_id]

    async def _end_due_rests(self) -> None:
        async with self._database.transaction() as conn:
            due = await leases.lanes_with_work(conn, self._worker_id)
        for appservice_id in due:
            if lane := self._lanes.get(appservice_id):
                lane.end_rest()

    async def _hand_back(self) -> None:
        try:
            async with self._database.transaction() as conn:
                await leases.release(conn, self._worker_id)
        except DatabaseUnavailableError as error:
            log.warning("leases.not_handed_back", reason=error.reason)

    def _lane(self, lease: Lease) -> Lane:
        destination = self._destinations[lease.appservice_id]
        sender = HttpSender(self._session, destination.registration, destination.policy)
        return Lane(self._database, lease, destination.policy, sender, self._clock)
