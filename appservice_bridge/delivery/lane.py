"""Serves one lane: what is owed is sent until it is taken, and only then what follows."""

import asyncio
from typing import Final, assert_never

import structlog

from appservice_bridge.delivery import sealing
from appservice_bridge.delivery.lease_clock import LeaseClock
from appservice_bridge.delivery.sender import Sender
from appservice_bridge.domain.outcome import Acked, Refused, Unreachable
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
    commit, the same transaction is sent again, the same id and bytes.
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
        self._policy = policy
        self._sender = sender
        self._clock = clock
        self._work = asyncio.Event()
        self._rest_until = 0.0
        self._looked = False  # and found nothing; an append may have come since
        self._attempt = 0
        self._log = log.bind(appservice=lease.appservice_id)

    def look(self) -> None:
        """Something was appended; a lane that rests goes on resting."""
        self._work.set()

    def end_rest(self) -> None:
        """The lane is due by the database's clock."""
        self._rest_until = 0.0
        self._work.set()

    async def serve(self, stop: asyncio.Event) -> None:
        """Deliver until `stop` is set or the lane is someone else's."""
        owed: Sealed | None = None
        while not stop.is_set():
            try:
                if owed is None and not self._looked and not self._resting():
                    owed = await self._resume()
                if owed is None or self._resting() or not self._clock.holds:
                    await self._wait(stop)
                    continue
                owed = await self._deliver(owed)
            except DatabaseUnavailableError as error:
                self._log.warning("lane.rests", reason=error.reason)
                owed = None  # what the database holds may be ahead of what we know
                await asyncio.sleep(DATABASE_REST_SECONDS)
            except LeaseLostError:
                self._log.warning("lane.lease_lost")
                return

    async def _resume(self) -> Sealed | None:
        self._work.clear()
        try:
            async with self._database.transaction() as conn:
                state = await lanes.hold(conn, self._lease)
                self._attempt = state.failed_attempts
                self._rest_for(state.rest_seconds)
                owed = await sealing.owed(conn, self._lease, self._policy, state)
                self._looked = owed is None
                return owed
        except AlteredTransactionError as error:
            self._log.error("transaction.altered", txn=error.txn_id)
            async with self._database.transaction() as conn:
                await lanes.halt(conn, self._lease, outcome="altered")
            self._rest_for(float("inf"))
            return None

    async def _deliver(self, owed: Sealed) -> Sealed | None:
        """One attempt, and its record: the next transaction, or the same one again."""
        started = asyncio.get_running_loop().time()
        try:
            async with self._clock.guard():
                outcome = await self._sender.send(owed.txn_id, owed.body, now=started)
        except TimeoutError:
            self._log.warning("lane.lease_expired", txn=owed.txn_id)
            return None
        seconds = asyncio.get_running_loop().time() - started
        self._attempt += 1
        match outcome:
            case Acked():
                return await self._ack(owed, outcome, seconds)
            case Refused() | Unreachable():
                await self._rest(owed, outcome, seconds)
                return owed
            case _:
                assert_never(outcome)

    async def _ack(self, owed: Sealed, outcome: Acked, seconds: float) -> Sealed | None:
        self._work.clear()
        async with self._database.transaction() as conn:
            following = await sealing.ack_and_seal_next(
                conn, self._lease, self._policy, owed, status=outcome.status
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

    async def _rest(self, owed: Sealed, outcome: Refused | Unreachable, seconds: float) -> None:
        word, status, asked = _told(outcome)
        rest = self._policy.backoff.rest(self._attempt, retry_after_seconds=asked)
        async with self._database.transaction() as conn:
            due_in = await lanes.rest(
                conn,
                self._lease,
                rest_seconds=rest,
                attempt_seconds=seconds,
                outcome=word,
                status=status,
            )
        self._rest_for(due_in)
        self._log.warning(
            "transaction.refused" if status else "transaction.unanswered",
            txn=owed.txn_id,
            attempt=self._attempt,
            outcome=word,
            status=status,
            rest_seconds=round(due_in, 3),
        )

    def _rest_for(self, seconds: float) -> None:
        self._rest_until = asyncio.get_running_loop().time() + seconds

    def _resting(self) -> bool:
        return asyncio.get_running_loop().time() < self._rest_until

    async def _wait(self, stop: asyncio.Event) -> None:
        """Until there may be work: an append, the end of the rest, or of the lane."""
        if stop.is_set():
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


def _told(outcome: Refused | Unreachable) -> tuple[str, int | None, float | None]:
    """A word for logs and `status`, the HTTP status, and the rest that was asked for."""
    match outcome:
        case Refused(status=status, errcode=errcode, retry_after_seconds=asked):
            return errcode or f"http_{status}", status, asked
        case Unreachable(reason=reason):
            return reason, None, None
        case _:
            assert_never(outcome)
