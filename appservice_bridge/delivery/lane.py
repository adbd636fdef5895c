"""Serves one lane: what is owed is sent until it is taken, and only then what follows."""

import asyncio
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple

import structlog

from appservice_bridge.delivery import sealing
from appservice_bridge.delivery.ahead import Ahead
from appservice_bridge.delivery.bodies import Bodies
from appservice_bridge.delivery.building import build_ahead, built_of
from appservice_bridge.delivery.group_commit import GroupCommit
from appservice_bridge.delivery.lease_clock import LeaseClock
from appservice_bridge.delivery.refusing import Attempt, Refusing
from appservice_bridge.delivery.sender import Sender
from appservice_bridge.domain.observing import UNOBSERVED, DeliveryObserver
from appservice_bridge.domain.outcome import Acked
from appservice_bridge.domain.policy import DeliveryPolicy
from appservice_bridge.domain.transaction import AlteredTransactionError, Item, Kind
from appservice_bridge.domain.waiting import set_within
from appservice_bridge.storage import lanes
from appservice_bridge.storage.database import Database, DatabaseUnavailableError
from appservice_bridge.storage.lanes import LaneState, Place
from appservice_bridge.storage.leases import Lease, LeaseLostError
from appservice_bridge.storage.sealed import Sealed
from appservice_bridge.storage.turns import Following, Turn

log = structlog.get_logger(__name__)

DATABASE_REST_SECONDS: Final = 1.0
NO_ROOM_REST_SECONDS: Final = 3.0


class Shared(NamedTuple):
    """What all lanes of a worker have together.

    Attributes:
        failing: what lanes do about an attempt that failed; so that those that are well never
            queue behind many that are not.
    """

    group: GroupCommit
    bodies: Bodies
    failing: Database
    observer: DeliveryObserver = UNOBSERVED


class Lane:
    """One appservice's lane, for as long as its lease holds.

    It may die anywhere: before a seal's commit nothing happened; after it, and before the ack's
    commit, the same transaction is sent again, the same id and bytes. What dying does to one that
    was refused, `Refusing` says.

    While nothing fails, what follows is built from what this process knows of the lane, and
    committed together with other lanes; the commit makes sure of it. In every other case the whole
    lane is looked at, in a DB transaction of its own.
    """

    def __init__(
        self,
        database: Database,
        lease: Lease,
        policy: DeliveryPolicy,
        sender: Sender,
        clock: LeaseClock,
        shared: Shared,
        *,
        place: Place | None = None,
    ) -> None:
        self._database = database
        self._group, self._bodies, self._failing, self._observer = shared
        self._place = place  # where the next seal begins, while nothing fails; None: have a look
        self._lease = lease
        self.leaving = False
        self.sending = False
        self._policy = policy
        self._sender = sender
        self._clock = clock
        self._refusing = Refusing(self._failing, lease, policy, clock)
        self._work = asyncio.Event()
        self._rest_until = 0.0
        self._looked = False  # and found nothing; an append may have come since
        self._handed: Sequence[Item] = ()  # what came, if nothing came before it
        self._attempt = 0
        self._ahead: Ahead | None = None
        self._term = clock.term
        self._log = log.bind(appservice=lease.appservice_id)

    def look(self, handed: Sequence[Item] = ()) -> None:
        """Something was appended; a lane that rests goes on resting.

        What was `handed` over need not be read in the outbox by a lane that is idle; one that is at
        work reads what came until it is done.
        """
        self._handed = handed if self._looked and not self._handed else ()
        self._work.set()

    def end_rest(self) -> None:
        """The lane is due by the database's clock."""
        self._rest_until = 0.0
        self._work.set()

    def leave(self) -> None:
        """End when nothing is in flight: another worker is to have the lane, or this one ends."""
        self.leaving = True
        self._work.set()

    async def serve(self, stop: asyncio.Event) -> None:
        """Deliver until `stop` is set, `leave` is called, or the lane is someone else's."""
        try:
            await self._serve(stop)
        finally:
            self._bodies.hold(self, 0)
            self._drop_ahead()

    async def _serve(self, stop: asyncio.Event) -> None:
        owed: Sealed | None = None
        while not self._ends(stop):
            try:
                if self._term != self._clock.term:
                    owed, self._looked, self._place = None, False, None
                    self._drop_ahead()
                if owed is None and not self._looked and not self._resting():
                    owed = await self._or_halt(self._look())
                    continue  # the lease may have run out meanwhile, and hold again
                if owed is None or self._resting() or not self._clock.holds or self._ends(stop):
                    await self._wait(stop)
                    continue
                again = not owed.attempt_open
                self.sending = not again
                step = self._open(owed) if again else self._deliver(owed, stop)
                owed = await self._or_halt(step)
            except DatabaseUnavailableError as error:
                self._log.warning("lane.rests", reason=error.reason)
                owed = self._place = None  # what the database holds may be ahead of what we know
                await asyncio.sleep(DATABASE_REST_SECONDS)
            except LeaseLostError:
                self._log.warning("lane.lease_lost")
                return
            finally:
                self.sending = False
                self._bodies.hold(self, 0 if owed is None else len(owed.body))
                if owed is None:
                    self._drop_ahead()

    def _ends(self, stop: asyncio.Event) -> bool:
        """Whether no attempt is to begin any more."""
        return stop.is_set() or self.leaving

    async def _look(self) -> Sealed | None:
        """What is owed, or what has come and is sealed now."""
        self._work.clear()
        self._term = self._clock.term
        if following := await self._build_ahead():
            if self.leaving:
                return None  # it could not be sent
            turned = await self._group.turn(Turn(lease=self._lease, following=following))
            if turned is not None and turned.sealed:
                return self._goes_next(following.sealed)
        database = self._failing if self._attempt else self._database
        async with database.transaction() as conn:
            state = await lanes.hold(conn, self._lease)
            self._attempt = state.failed_attempts
            if state.in_flight_bytes and not self._bodies.fits(self, state.in_flight_bytes):
                self._rest_for(NO_ROOM_REST_SECONDS)
                return None
            self._rest_for(self._policy.backoff.at_most(state.rest_seconds))
            owed = await sealing.owed(conn, self._lease, self._capped(), state)
        return self._found(state, owed)

    def _found(self, state: LaneState, owed: Sealed | None) -> Sealed | None:
        """After a look at the whole lane; `state` is as it was before."""
        self._looked = owed is None
        self._place = None if state.body_cap_bytes else state.place
        return self._goes_next(owed)

    def _goes_next(self, owed: Sealed | None) -> Sealed | None:
        """What was sealed just now took our place: the next one comes behind it."""
        if owed is not None and self._place is not None and owed.number >= self._place.number:
            self._place = Place(self._place.epoch, owed.number + 1, owed.last_position)
        return owed

    async def _build_ahead(self, beside: Sealed | None = None) -> Following | None:
        """What follows, if it can be built; it is held beside what is in flight."""
        handed, self._handed = self._handed, ()
        place = self._place
        if place is None:
            return None
        if handed and handed[0].position == place.after + 1:
            built = built_of(handed, self._capped(), place)
        else:
            waits = beside is None  # never in line with something in its hands
            whole = waits and await self._bodies.room(self, self._policy.max_body_bytes)
            policy = self._as_it_is if whole else self._capped
            built = await build_ahead(self._database, self._lease.appservice_id, policy, place)
        held = 0 if beside is None else len(beside.body)
        self._bodies.hold(self, held + (0 if built is None else len(built.sealed.body)))
        return built

    def _as_it_is(self) -> DeliveryPolicy:
        return self._policy

    def _capped(self) -> DeliveryPolicy:
        """The policy, with no larger bodies than there is room for."""
        cap = self._bodies.cap(self._policy.max_body_bytes)
        if cap == self._policy.max_body_bytes:
            return self._policy
        return replace(self._policy, max_body_bytes=cap)

    async def _or_halt(self, step: Awaitable[Sealed | None]) -> Sealed | None:
        """Take a step; a seal that does not hold stops the lane until an operator looks."""
        try:
            return await step
        except AlteredTransactionError as error:
            self._log.error("transaction.altered", txn=error.txn_id)
            async with self._database.transaction() as conn:
                await lanes.halt(conn, self._lease, outcome="altered")
            self._rest_for(float("inf"))
            return None

    async def _open(self, owed: Sealed) -> Sealed | None:
        """Begin another attempt, or what an operator wants in its place."""
        opened = await self._refusing.open(owed)
        if opened is None or opened.number != owed.number:
            self._attempt = 0
        return opened

    async def _deliver(self, owed: Sealed, stop: asyncio.Event) -> Sealed | None:
        """One attempt, and what follows: the next transaction, or the same one again."""
        started = asyncio.get_running_loop().time()
        with self._building_ahead(owed) as ahead:
            try:
                async with self._clock.guard():
                    outcome = await self._sender.send(owed.txn_id, owed.body, now=started)
            except TimeoutError:
                self._log.warning("lane.lease_expired", txn=owed.txn_id)
                return None
            self._attempt += 1
            self._observer.attempted(self._lease.appservice_id, outcome)
            if isinstance(outcome, Acked):
                seconds = asyncio.get_running_loop().time() - started
                return await self._ack(owed, outcome, seconds, stop, ahead)
        failed = Attempt(sender=self._sender, failed=outcome, number=self._attempt, began=started)
        return await self._fail(owed, failed)

    @contextmanager
    def _building_ahead(self, owed: Sealed) -> Iterator[asyncio.Task[Following | None] | None]:
        """Build what follows while this is in flight; it may have begun when this was sealed."""
        if self._ahead is None or self._ahead.behind != owed.number:
            self._build_behind(owed)
        ahead, self._ahead = self._ahead, None
        try:
            yield None if ahead is None else ahead.building
        finally:
            if ahead is not None:
                ahead.drop()
        if ahead is not None:
            ahead.require_well()

    def _build_behind(self, sealed: Sealed) -> None:
        """Begin to build what follows, if more waits, and there is room for both."""
        self._drop_ahead()
        if self._place is None or not sealed.cut or not self._bodies.roomy:
            return
        self._handed = ()
        place = Place(self._place.epoch, sealed.number + 1, sealed.last_position)
        build = partial(build_ahead, self._database, self._lease.appservice_id, self._capped, place)
        self._ahead = Ahead(sealed.number, build, self._bodies)

    def _drop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.drop()
        self._ahead = None

    async def _fail(self, owed: Sealed, failed: Attempt) -> Sealed | None:
        """What is owed after an attempt that failed: the same, or what is in its place."""
        self._place = None
        after = await self._refusing.follow(owed, failed)
        self._rest_for(after.rest_seconds)
        if after.owed is None or after.owed.number != owed.number:
            self._attempt = 0
            self._looked = after.owed is None
        elif after.rest_seconds:
            return None  # it is read again: many that rest would fill the memory
        return after.owed

    async def _ack(
        self,
        owed: Sealed,
        outcome: Acked,
        seconds: float,
        stop: asyncio.Event,
        ahead: asyncio.Task[Following | None] | None,
    ) -> Sealed | None:
        came = self._work.is_set()
        self._work.clear()
        following = None
        if ahead is not None:
            following = await ahead
        elif came and self._bodies.roomy:
            following = await self._build_ahead(beside=owed)
        if owed.updates or self._policy.keep_delivered_seconds:
            owes = await self._ack_alone(owed, outcome, stop)
        else:
            owes = await self._ack_together(owed, outcome, stop, following)
        self._observer.delivered(
            self._lease.appservice_id, items=owed.items, captured=owed.captured
        )
        self._log.info(
            "transaction.acked",
            txn=owed.txn_id,
            attempt=self._attempt,
            ms=round(seconds * 1000, 1),
            events=owed.kinds.get(Kind.EVENT, 0),
            ephemeral=owed.kinds.get(Kind.EPHEMERAL, 0),
            to_device=owed.kinds.get(Kind.TO_DEVICE, 0),
            device_lists=owed.device_lists,
            device_keys=owed.device_keys,
        )
        self._attempt = 0
        return self._goes_next(owes)

    async def _ack_together(
        self, owed: Sealed, outcome: Acked, stop: asyncio.Event, following: Following | None
    ) -> Sealed | None:
        if self._ends(stop):
            following = None  # it could not be sent
        if following is not None:
            self._build_behind(following.sealed)
        turned = await self._group.turn(
            Turn(lease=self._lease, taken=owed, status=outcome.status, following=following)
        )
        if turned is None or not turned.acked:
            self._drop_ahead()
            return await self._ack_alone(owed, outcome, stop)
        self._looked = not turned.more
        return following.sealed if following is not None and turned.sealed else None

    async def _ack_alone(self, owed: Sealed, outcome: Acked, stop: asyncio.Event) -> Sealed | None:
        """With a look at all that the lane may owe."""
        async with self._database.transaction() as conn:
            following = await sealing.ack_and_seal_next(
                conn,
                self._lease,
                self._capped(),
                owed,
                status=outcome.status,
                seal=not self._ends(stop),  # it could not be sent
            )
        self._looked = following is None
        return following

    def _rest_for(self, seconds: float) -> None:
        self._rest_until = asyncio.get_running_loop().time() + seconds

    def _resting(self) -> bool:
        return asyncio.get_running_loop().time() < self._rest_until

    async def _wait(self, stop: asyncio.Event) -> None:
        """Until there may be work: an append, the end of the rest, or of the lane."""
        if self._ends(stop):
            return
        if await set_within(self._work, self._nothing_due_seconds()):
            self._work.clear()
        self._looked = False

    def _nothing_due_seconds(self) -> float:
        """How long there is nothing to do unless someone says so; it may be infinite."""
        rest = self._rest_until - asyncio.get_running_loop().time()
        if rest > 0:
            return rest
        return float("inf") if self._clock.holds else DATABASE_REST_SECONDS
