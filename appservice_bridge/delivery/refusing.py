"""What follows an attempt that failed: it is written down, and then a rest, a probe, or parts."""

import asyncio
from dataclasses import dataclass
from typing import Final, assert_never

import structlog

from appservice_bridge.delivery.lease_clock import LeaseClock
from appservice_bridge.delivery.sender import PingingSender, Sender
from appservice_bridge.delivery.splitting import replace_refused
from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.domain.outcome import Acked, Refused, Unreachable
from appservice_bridge.domain.policy import DeliveryPolicy
from appservice_bridge.domain.refusals import (
    TOO_LARGE,
    UNAUTHORIZED,
    History,
    Probe,
    Replace,
    Replacement,
    SendAgain,
    Step,
    counts,
    may_have_processed,
    needs_ping,
    next_step,
    replacement,
)
from appservice_bridge.storage import attempts, lanes, ledger
from appservice_bridge.storage.database import Connection, Database
from appservice_bridge.storage.lanes import LaneState
from appservice_bridge.storage.leases import Lease
from appservice_bridge.storage.ledger import LedgerKey
from appservice_bridge.storage.refused import Answer, Grounds
from appservice_bridge.storage.sealed import Sealed

log = structlog.get_logger(__name__)

EMPTY: Final = b'{"events":[]}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One that failed.

    Attributes:
        sender: with which it was made; a probe goes the same way, to the same url and token.
        number: since the last ack, 1-based.
        began: by the event loop's clock.
    """

    sender: Sender
    failed: Refused | Unreachable
    number: int
    began: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Aftermath:
    """What the lane owes now, and how long it rests first."""

    owed: Sealed | None
    rest_seconds: float


class Refusing:
    """Follows failed attempts of one lane, for as long as its lease holds.

    It may die anywhere. Before the outcome is written, the attempt stays open, and the next holder
    takes the transaction for one that may have been processed. After that, and until the parts are
    committed, the same transaction is sent again; a probe that was acked meanwhile is known to
    this process alone, so that the next holder asks for another.
    """

    def __init__(
        self, database: Database, lease: Lease, policy: DeliveryPolicy, clock: LeaseClock
    ) -> None:
        self._database = database
        self._lease = lease
        self._policy = policy
        self._clock = clock
        self._probed_after: int | None = None  # the number of a transaction that is in flight
        self._log = log.bind(appservice=lease.appservice_id)

    async def follow(self, owed: Sealed, attempt: Attempt) -> Aftermath:
        """Write the outcome down, and do what follows from it.

        Raises:
            LeaseLostError: someone else holds the lane.
            AlteredTransactionError: it was to be split, and is not what was sealed.
        """
        counted = await self._counts(owed, attempt)
        async with self._database.transaction() as conn:
            rest = await self._rest(conn, owed, attempt)
            known, state, step = await self._step(conn, owed, attempt, counted=counted)
            ordered = state.bury_asked == known.number
            probe_id = following = None
            if isinstance(step, Probe):
                probe_id = await lanes.take_number(conn, self._lease, state)
            if isinstance(step, Replace):
                following = await self._replace(conn, known, step.by, attempt, ordered=ordered)
        match step:
            case SendAgain():
                return Aftermath(owed=known, rest_seconds=rest)
            case Replace():
                return Aftermath(owed=following, rest_seconds=0)
            case Probe():
                if probe_id is None or not await self._probe(probe_id, attempt.sender):
                    return Aftermath(owed=known, rest_seconds=rest)
                if step.by.buries:
                    self._probed_after = known.number
                    return Aftermath(owed=known, rest_seconds=0)
                async with self._database.transaction() as conn:
                    following = await self._replace(conn, known, step.by, attempt)
                return Aftermath(owed=following, rest_seconds=0)
            case _:
                assert_never(step)

    async def open(self, owed: Sealed) -> Sealed | None:
        """Say that another attempt begins, or do what an operator wants done; see `begin`.

        Raises:
            LeaseLostError, AlteredTransactionError: as it says.
        """
        async with self._database.transaction() as conn:
            return await begin(conn, self._lease, self._policy, owed)

    async def _counts(self, owed: Sealed, attempt: Attempt) -> bool:
        """Whether the outcome counts against the transaction; some only if a ping succeeds."""
        doubtful = owed.doubtful or may_have_processed(attempt.failed)
        if not needs_ping(
            attempt.failed,
            doubtful=doubtful,
            refusals=owed.refusals,
            thresholds=self._policy.thresholds,
        ):
            return counts(attempt.failed, doubtful=doubtful)
        try:
            async with self._clock.guard():
                return isinstance(attempt.sender, PingingSender) and await attempt.sender.ping()
        except TimeoutError:
            return False

    async def _rest(self, conn: Connection, owed: Sealed, attempt: Attempt) -> float:
        word, status, asked = _told(attempt.failed)
        backoff = self._policy.backoff
        rest = backoff.rest(attempt.number, retry_after_seconds=asked)
        if status in UNAUTHORIZED:
            rest = backoff.ceiling_seconds  # a token is wrong: only an operator mends that
        due_in = await lanes.rest(
            conn,
            self._lease,
            rest_seconds=rest,
            attempt_seconds=asyncio.get_running_loop().time() - attempt.began,
            outcome=word,
            status=status,
        )
        said = self._log.error if status in UNAUTHORIZED else self._log.warning
        said(
            _event(status),
            txn=owed.txn_id,
            attempt=attempt.number,
            outcome=word,
            status=status,
            rest_seconds=round(due_in, 3),
        )
        return due_in

    async def _step(
        self, conn: Connection, owed: Sealed, attempt: Attempt, *, counted: bool
    ) -> tuple[Sealed, LaneState, Step]:
        """Close the attempt; returns what is known now, and what follows."""
        known, refused_seconds = await attempts.close(
            conn,
            self._lease,
            owed,
            doubtful=may_have_processed(attempt.failed),
            counted=counted,
        )
        state = await lanes.hold(conn, self._lease)
        if state.paused:
            return known, state, SendAgain()
        history = History(
            items=known.items,
            updates=known.updates,
            part=known.part_of is not None or (not known.items and state.updates_cap is not None),
            doubtful=known.doubtful,
            counted=counted,
            refusals=known.refusals,
            refused_seconds=refused_seconds,
            probed=self._probed_after == known.number,
            split_asked=state.split_asked,
            bury_asked=state.bury_asked == known.number,
        )
        self._probed_after = None
        by = replacement(history)
        if state.split_asked and by.buries:
            await lanes.forget_split(conn, self._lease)
        if isinstance(attempt.failed, Refused) and attempt.failed.status == TOO_LARGE:
            await self._learn_cap(conn, state, known, by)
        return known, state, next_step(attempt.failed, history, self._policy.thresholds)

    async def _learn_cap(
        self, conn: Connection, state: LaneState, refused: Sealed, by: Replacement
    ) -> None:
        """What is sealed from now on is smaller; a body that cannot be smaller teaches nothing."""
        cap = max(len(refused.body) // 2, self._policy.least_body_cap_bytes)
        now = min(self._policy.max_body_bytes, state.body_cap_bytes or cap + 1)
        if cap < now and not by.buries:
            await lanes.lower_body_cap(conn, self._lease, max_bytes=cap)
            self._log.warning("lane.cap_learnt", max_body_bytes=cap)

    async def _probe(self, txn_id: str, sender: Sender) -> bool:
        """Whether an empty transaction is taken now; its id is given out already, and never again.

        A probe that is lost with the worker has done nothing.
        """
        try:
            async with self._clock.guard():
                now = asyncio.get_running_loop().time()
                taken = isinstance(await sender.send(txn_id, EMPTY, now=now), Acked)
        except TimeoutError:
            taken = False
        self._log.warning("lane.probed", txn=txn_id, acked=taken)
        return taken

    async def _replace(
        self,
        conn: Connection,
        refused: Sealed,
        by: Replacement,
        attempt: Attempt,
        *,
        ordered: bool = False,
    ) -> Sealed | None:
        grounds = Grounds(answer=_answer(attempt), ordered=ordered)
        return await _replace(conn, self._lease, self._policy, refused, by, grounds)


async def begin(
    conn: Connection, lease: Lease, policy: DeliveryPolicy, owed: Sealed
) -> Sealed | None:
    """Say that another attempt begins, or do what an operator wants done instead.

    In the DB transaction of the caller. Returns what is owed then: the first part, of which no
    attempt has begun; what follows one that was set aside. None: paused, or nothing follows.

    Raises:
        LeaseLostError: someone else holds the lane.
        AlteredTransactionError: it was to be replaced, and is not what was sealed.
    """
    state = await lanes.hold(conn, lease)
    if state.paused:
        return None
    by = replacement(History(items=owed.items, updates=owed.updates))
    if state.bury_asked == owed.number and by.buries:
        return await _replace(conn, lease, policy, owed, by, Grounds(ordered=True))
    if state.split_asked:
        if not by.buries:
            return await _replace(conn, lease, policy, owed, by, None)
        await lanes.forget_split(conn, lease)
    return await attempts.open_(conn, lease, owed)


async def _replace(
    conn: Connection,
    lease: Lease,
    policy: DeliveryPolicy,
    refused: Sealed,
    by: Replacement,
    grounds: Grounds | None,
) -> Sealed | None:
    """In the DB transaction of the caller; without grounds nothing is buried."""
    following = await replace_refused(conn, lease, policy, refused, by, grounds)
    if refused.doubtful:
        suspect = LedgerKey(lease.appservice_id, "transaction", LedgerOutcome.SUSPECT)
        await ledger.count(conn, {suspect: 1})
    said = log.error if by.buries else log.warning
    said(
        "transaction.buried" if by.buries else "transaction.split",
        appservice=lease.appservice_id,
        txn=refused.txn_id,
        by=str(by),
        items=refused.items,
        updates=refused.updates,
        doubtful=refused.doubtful,
        ordered=grounds is not None and grounds.ordered,
    )
    return following


def _answer(attempt: Attempt) -> Answer | None:
    if not isinstance(attempt.failed, Refused):
        return None
    failed = attempt.failed
    return Answer(status=failed.status, errcode=failed.errcode, text=failed.answer)


def _event(status: int | None) -> str:
    if status in UNAUTHORIZED:
        return "transaction.unauthorized"
    return "transaction.refused" if status else "transaction.unanswered"


def _told(outcome: Refused | Unreachable) -> tuple[str, int | None, float | None]:
    """A word for logs and `status`, the HTTP status, and the rest that was asked for."""
    match outcome:
        case Refused(status=status, errcode=errcode, retry_after_seconds=asked):
            return errcode or f"http_{status}", status, asked
        case Unreachable(reason=reason):
            return reason, None, None
        case _:
            assert_never(outcome)
