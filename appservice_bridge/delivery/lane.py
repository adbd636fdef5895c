"""Serves one lane: what is owed is sent until it is taken, and only then what follows."""

import asyncio
from collections.abc import Awaitable
from typing import Final

import structlog

from appservice_bridge.delivery import sealing
from appservice_bridge.delivery.lease_clock import LeaseClock
from appservice_bridge.delivery.refusing import Attempt, Refusing
from appservice_bridge.delivery.sender import Sender
from appservice_bridge.domain.outcome import Acked
from appservice_bridge.domain.policy import DeliveryPolicy
from appservice_bridge.domain.transaction import AlteredTransactionError, Kind
from appservice_bridge.domain.waiting import set_within
from appservice_bridge.storage import lanes
from appservice_bridge.storage.database import Database, DatabaseUnavailableError
from appservice_bridge.storage.leases import Lease, LeaseLostError
from appservice_bridge.storage.sealed import Sealed

log = structlog.get_logger(__name__)

DATABASE_REST_SECONDS: Final = 1.0


class Lane:
    """One appservice's lane, for as long as its lease holds.

    It may die anywhere: before a seal's commit nothing happened; after it, and before the ack's
    commit, the same transaction is sent again, the same id and bytes. What dying does to one that
    was refused, `Refusing` says.
    """

    def __init__(
        self,
        database: Database,
        lease: Lease,
        policy: DeliveryPolicy,
        sender: Sender,
        clock: LeaseClock,
    ) -> None:
        self._database = database
        self._lease = lease
        self.leaving = False
        self.sending = False
        self._policy = policy
        self._sender = sender
        self._clock = clock
        self._refusing = Refusing(database, lease, policy, clock)
        self._work = asyncio.Event()
        self._rest_until = 0.0
        self._looked = False  # and found nothing; an append may have come since
        self._attempt = 0
        self._term = clock.term
        self._log = log.bind(appservice=lease.appservice_id)

    def look(self) -> None:
        """Something was appended; a lane that rests goes on resting."""
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
        owed: Sealed | None = None
        while not self._ends(stop):
            try:
                if self._term != self._clock.term:
                    owed, self._looked = None, False  # another worker may have sent it since
                if owed is None and not self._looked and not self._resting():
                    owed = await self._or_halt(self._resume())
                    continue  # the lease may have run out meanwhile, and hold again
                if owed is None or self._resting() or not self._clock.holds or self._ends(stop):
                    await self._wait(stop)
                    continue
                again = not owed.attempt_open
                self.sending = not again
                step = self._refusing.open(owed) if again else self._deliver(owed, stop)
                owed = await self._or_halt(step)
            except DatabaseUnavailableError as error:
                self._log.warning("lane.rests", reason=error.reason)
                owed = None  # what the database holds may be ahead of what we know
                await asyncio.sleep(DATABASE_REST_SECONDS)
            except LeaseLostError:
                self._log.warning("lane.lease_lost")
                return
            finally:
                self.sending = False

    def _ends(self, stop: asyncio.Event) -> bool:
        """Whether no attempt is to begin any more."""
        return stop.is_set() or self.leaving

    async def _resume(self) -> Sealed | None:
        self._work.clear()
        self._term = self._clock.term
        async with self._database.transaction() as conn:
            state = await lanes.hold(conn, self._lease)
            self._attempt = state.failed_attempts
            self._rest_for(self._policy.backoff.at_most(state.rest_seconds))
            owed = await sealing.owed(conn, self._lease, self._policy, state)
            self._looked = owed is None
            return owed

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

    async def _deliver(self, owed: Sealed, stop: asyncio.Event) -> Sealed | None:
        """One attempt, and what follows: the next transaction, or the same one again."""
        sender = self._sender
        started = asyncio.get_running_loop().time()
        try:
            async with self._clock.guard():
                outcome = await sender.send(owed.txn_id, owed.body, now=started)
        except TimeoutError:
            self._log.warning("lane.lease_expired", txn=owed.txn_id)
            return None
        seconds = asyncio.get_running_loop().time() - started
        self._attempt += 1
        if isinstance(outcome, Acked):
            return await self._ack(owed, outcome, seconds, stop)
        after = await self._refusing.follow(
            owed, Attempt(sender=sender, failed=outcome, number=self._attempt, began=started)
        )
        self._rest_for(after.rest_seconds)
        if after.owed is None or after.owed.number != owed.number:
            self._attempt = 0
            self._looked = after.owed is None
        return after.owed

    async def _ack(
        self, owed: Sealed, outcome: Acked, seconds: float, stop: asyncio.Event
    ) -> Sealed | None:
        self._work.clear()
        async with self._database.transaction() as conn:
            following = await sealing.ack_and_seal_next(
                conn,
                self._lease,
                self._policy,
                owed,
                status=outcome.status,
                seal=not self._ends(stop),  # it could not be sent
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
