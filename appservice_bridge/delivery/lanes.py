"""All lanes that this worker holds: leases kept alive, free lanes claimed, rests ended."""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Final
from uuid import UUID

import aiohttp
import structlog

from appservice_bridge.delivery.balance import Balance
from appservice_bridge.delivery.bodies import Bodies
from appservice_bridge.delivery.connected_lanes import ConnectedLanes
from appservice_bridge.delivery.destination import Destination
from appservice_bridge.delivery.group_commit import GroupCommit
from appservice_bridge.delivery.holds import Holds
from appservice_bridge.delivery.http_sender import HttpSender
from appservice_bridge.delivery.lane import Lane, Shared
from appservice_bridge.delivery.lease_clock import LeaseClock
from appservice_bridge.delivery.polls import Polls
from appservice_bridge.domain.observing import UNOBSERVED, DeliveryObserver
from appservice_bridge.domain.waiting import set_within
from appservice_bridge.storage import lanes as lane_rows
from appservice_bridge.storage import leases
from appservice_bridge.storage.database import Database, DatabaseUnavailableError
from appservice_bridge.storage.lanes import Place
from appservice_bridge.storage.leases import Lease
from appservice_bridge.storage.notifications import OUTBOX, notify
from appservice_bridge.storage.straight import Grown
from appservice_bridge.storage.stuck import end_stuck

log = structlog.get_logger(__name__)

LEASE_SECONDS: Final = 10.0
CONNECTIONS: Final = 4  # for lanes, and for who comes: leases, commits, intake never wait for them
CONNECTIONS_OF_FAILING: Final = 2
LOOK_SECONDS: Final = 2.0  # a notification is a courtesy; the look alone must do


class Lanes:
    """Claims lanes and serves them; dies with its worker, whose lanes then move to others.

    Lanes of appservices that come to us are not claimed: who they come to has them.

    Attributes:
        connected: serves those who connect.
        polls: answers those who ask.
    """

    def __init__(
        self,
        database: Database,
        worker_id: UUID,
        *,
        name: str,
        destinations: Mapping[str, Destination],
        session: aiohttp.ClientSession,
        observer: DeliveryObserver = UNOBSERVED,
    ) -> None:
        self._database = database
        self._for_lanes = database.limited(CONNECTIONS)
        self._worker_id = worker_id
        self._name = name
        self._destinations = {
            one: to for one, to in destinations.items() if not to.transport.comes_to_us
        }
        self._session = session
        self._clock = LeaseClock()
        self._lanes: dict[str, Lane] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._balance = Balance(worker_id)
        self._ended: list[Lease] = []  # served no more, and not handed back yet
        self._holds = Holds(database.limited(CONNECTIONS), worker_id, destinations, observer)
        failing = database.limited(CONNECTIONS_OF_FAILING)
        self._shared = Shared(GroupCommit(database), Bodies(), failing, observer)
        self.connected = ConnectedLanes(self._holds, self._clock, self._shared)
        self.polls = Polls(self._holds)
        self.changed = asyncio.Event()
        self.may_send = asyncio.Event()  # leases held once; `leases_hold` says whether they do

    def leases_hold(self) -> bool:
        """Whether this worker may send now."""
        return self._clock.holds

    def held(self) -> int:
        """How many lanes this worker serves now."""
        return len(self._lanes) + self._holds.count

    def look(self, appservice_ids: Iterable[str]) -> bool:
        """Let lanes look for work; False if one of them is served elsewhere."""
        return self.appended(dict.fromkeys(appservice_ids, ()))

    def appended(self, grown: Grown) -> bool:
        """Let lanes look whose outbox grew; False if one of them is served elsewhere."""
        all_here = True
        for one, items in grown.items():
            if lane := self._lanes.get(one):
                lane.look(items)
            elif held := self._holds.get(one):
                held.look()
            else:
                all_here = False
        return all_here

    async def run(self, stop: asyncio.Event, *, finish_seconds: float = 20.0) -> None:
        """Serve lanes until `stop` is set, finish the requests in flight, hand the lanes back.

        An unexpected error ends all lanes and reaches the caller.
        """
        try:
            async with asyncio.TaskGroup() as group:
                keeping = group.create_task(self._keep_leases(), name="leases")
                committing = group.create_task(self._shared.group.run(), name="commits")
                looking = group.create_task(self._look_around(group, stop), name="lanes")
                await stop.wait()
                looking.cancel()
                await asyncio.gather(
                    self._finish(finish_seconds), self._holds.finish(finish_seconds)
                )
                keeping.cancel()
                committing.cancel()
        finally:
            await self._hand_back()

    async def _finish(self, seconds: float) -> None:
        """End all lanes, and hand each back when it has, so that none waits for a slow one."""
        for lane in self._lanes.values():
            lane.leave()
        clock = asyncio.get_running_loop().time
        deadline = clock() + seconds
        while self._serving and clock() < deadline:
            await asyncio.wait(
                self._serving, timeout=deadline - clock(), return_when=asyncio.FIRST_COMPLETED
            )
            with suppress(DatabaseUnavailableError):
                await self._give_up_ended()
        for task in self._serving:
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
                    await end_stuck(conn)
            except DatabaseUnavailableError as error:
                log.warning("leases.not_renewed", reason=error.reason)
                await asyncio.sleep(0.5)
                continue
            if not self._clock.holds:
                self.changed.set()  # there are lanes to look for
            self._clock.extend(asked_at + LEASE_SECONDS)
            self.may_send.set()
            await asyncio.sleep(LEASE_SECONDS / 4)

    async def _look_around(self, group: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        while True:
            self.changed.clear()
            try:
                if self._clock.holds:
                    await self._give_up_ended()
                    await self._claim_free(group, stop)
                    await self._holds.look()
                    await self._end_due_rests()
            except DatabaseUnavailableError as error:
                log.warning("lanes.rest", reason=error.reason)
            await set_within(self.changed, LOOK_SECONDS)

    async def _claim_free(self, group: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        """Take free lanes, leave those that are for others: so that each worker gets its share."""
        async with self._database.transaction() as conn:
            standing = await leases.standing(conn, self._destinations)
            now = asyncio.get_running_loop().time()
            move = self._balance.move(standing, known=self._lanes, now=now)
            claimed = []
            if move.claim:
                wanted = sorted(move.claim)
                claimed = await leases.claim(conn, self._worker_id, wanted, most=move.most)
            places = await lane_rows.places(conn, claimed) if claimed else {}
        self._leave(move.give_up, lost=move.lost)
        for lease in claimed:
            lane = self._lane(lease, places.get(lease.appservice_id))
            self._lanes[lease.appservice_id] = lane
            name = f"lane:{lease.appservice_id}"
            task = group.create_task(self._serve(lease, lane, stop), name=name)
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _serve(self, lease: Lease, lane: Lane, stop: asyncio.Event) -> None:
        log.info("lane.claimed", appservice=lease.appservice_id)
        try:
            await lane.serve(stop)
        finally:
            del self._lanes[lease.appservice_id]
        self._ended.append(lease)
        self.changed.set()

    def _leave(self, many: int, *, lost: Iterable[str]) -> None:
        """Let go of lost lanes and so many more: idle ones first, others when they are."""
        for appservice_id in lost:
            if lane := self._lanes.get(appservice_id):  # it may have noticed by itself
                lane.leave()
        shared = [one for one in self._lanes if one in self._destinations]
        many -= sum(self._lanes[one].leaving for one in shared)
        staying = [self._lanes[one] for one in sorted(shared) if not self._lanes[one].leaving]
        for lane in sorted(staying, key=lambda lane: lane.sending)[: max(many, 0)]:
            lane.leave()

    async def _give_up_ended(self) -> None:
        """Hand back what is served no more; dying before it leaves that to the lease's end."""
        ended, self._ended = self._ended, []
        if ended:
            async with self._database.transaction() as conn:
                await leases.give_up(conn, ended)
                await notify(conn, OUTBOX)

    async def _end_due_rests(self) -> None:
        async with self._database.transaction() as conn:
            due = await leases.lanes_with_work(conn, self._worker_id)
        for appservice_id in due:
            if lane := self._lanes.get(appservice_id) or self._holds.get(appservice_id):
                lane.end_rest()

    async def _hand_back(self) -> None:
        try:
            async with self._database.transaction() as conn:
                await leases.release(conn, self._worker_id)
                await notify(conn, OUTBOX)  # who takes them over looks at once
        except DatabaseUnavailableError as error:
            log.warning("leases.not_handed_back", reason=error.reason)

    def _lane(self, lease: Lease, place: Place | None) -> Lane:
        to = self._destinations[lease.appservice_id]
        sender = HttpSender(self._session, to.registration, to.policy)
        return Lane(
            self._for_lanes, lease, to.policy, sender, self._clock, self._shared, place=place
        )
