"""Transactions for appservices that ask for them, one at a time, and acknowledge each."""

import asyncio
import re
from typing import Final

import structlog

from appservice_bridge.delivery import sealing
from appservice_bridge.delivery.holds import Holds, NotServedError
from appservice_bridge.delivery.refusing import begin
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.outcome import Acked
from appservice_bridge.domain.policy import DeliveryPolicy
from appservice_bridge.domain.transaction import AlteredTransactionError
from appservice_bridge.domain.waiting import set_within
from appservice_bridge.storage import connected, lanes, sealed
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.lanes import LaneState
from appservice_bridge.storage.leases import Lease, LeaseLostError
from appservice_bridge.storage.sealed import Sealed

log = structlog.get_logger(__name__)

_TXN_ID: Final = re.compile(r"ab(.+)-([1-9][0-9]{0,18})")


class ReplacedPollError(BridgeError):
    """A newer request for the next transaction came, here or at another worker."""


class _Poll:
    """One request that waits."""

    def __init__(self) -> None:
        self.woken = asyncio.Event()
        self.lease = Lease(appservice_id="", token=0)  # until it is taken
        self.replaced = False

    def look(self) -> None:
        self.woken.set()

    def lose(self) -> None:
        self.replaced = True
        self.woken.set()

    end_rest = finish = look


class Polls:
    """Answers requests for the next transaction; the newest request of an appservice counts.

    Each look is one DB transaction: dying before its commit leaves nothing, dying after it leaves
    a sealed transaction, which the next request gets, the same id and bytes. The same holds for an
    appservice that dies before it acknowledges.
    """

    def __init__(self, holds: Holds) -> None:
        self._holds = holds
        self._newest: dict[str, _Poll] = {}

    async def following(self, appservice_id: str, *, within_seconds: float) -> Sealed | None:
        """The transaction in flight, else the next one; None if nothing came in time.

        Raises:
            ReplacedPollError: a newer request has the lane.
            NotServedError, DatabaseUnavailableError: not here, not now.
            AlteredTransactionError: it is not what was sealed; the lane is halted.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + within_seconds
        poll = self._begin(appservice_id)
        try:
            poll.lease = await self._take(appservice_id, poll)
            self._holds.enter(poll)
            while True:
                poll.woken.clear()
                owed = await self._look(poll)
                if owed is not None or self._holds.stopping or clock() >= deadline:
                    return owed
                await set_within(poll.woken, deadline - clock())
        except LeaseLostError:
            raise ReplacedPollError("another worker has a newer request") from None
        finally:
            self._holds.leave(poll)
            if self._newest.get(appservice_id) is poll:
                del self._newest[appservice_id]

    def _begin(self, appservice_id: str) -> _Poll:
        poll = _Poll()
        if older := self._newest.get(appservice_id):
            older.lose()
        self._newest[appservice_id] = poll
        return poll

    async def _take(self, appservice_id: str, poll: _Poll) -> Lease:
        async with self._holds.gates[appservice_id]:
            if poll.replaced:  # while it waited for its turn
                raise ReplacedPollError("a newer request came")
        return await self._holds.take(appservice_id, asked=True)

    async def _look(self, poll: _Poll) -> Sealed | None:
        if poll.replaced:
            raise ReplacedPollError("a newer request came")
        appservice_id = poll.lease.appservice_id
        policy = self._holds.destinations[appservice_id].policy
        try:
            async with (
                self._holds.gates[appservice_id],
                self._holds.database.transaction() as conn,
            ):
                return await _to_give_out(conn, poll.lease, policy)
        except AlteredTransactionError as error:
            await self._halt(poll.lease, error)
            raise

    async def ack(self, appservice_id: str, txn_id: str) -> bool:
        """Record that the appservice took a transaction; True, too, if that was known before.

        Dying before the commit leaves it in flight, dying after it makes the appservice say it
        again. False: no such transaction was given out.

        Raises:
            NotServedError, DatabaseUnavailableError: not here, not now.
            AlteredTransactionError: it is not what was sealed; the lane is halted.
        """
        async with self._holds.gates[appservice_id], self._holds.database.transaction() as conn:
            lease = await connected.as_held(conn, appservice_id)
            if lease is None:
                raise NotServedError("there is no such lane")
            state = await lanes.hold(conn, lease)
            owed = await sealed.in_flight(conn, lease) if state.in_flight else None
            if owed is None or owed.txn_id != txn_id:
                return _was_acked(txn_id, state, owed)
            policy = self._holds.destinations[appservice_id].policy
            await sealing.ack_and_seal_next(conn, lease, policy, owed, status=200, seal=False)
        observer = self._holds.observer
        observer.attempted(appservice_id, Acked(status=200))
        observer.delivered(appservice_id, items=owed.items, captured=owed.captured)
        log.info("transaction.acked", appservice=appservice_id, txn=txn_id)
        return True

    async def _halt(self, lease: Lease, error: AlteredTransactionError) -> None:
        log.error("transaction.altered", appservice=lease.appservice_id, txn=error.txn_id)
        async with self._holds.database.transaction() as conn:
            await lanes.halt(conn, lease, outcome="altered")


async def _to_give_out(conn: Connection, lease: Lease, policy: DeliveryPolicy) -> Sealed | None:
    """What is owed, with an attempt open: whoever is given it may process it."""
    state = await lanes.hold(conn, lease)
    owed = await sealing.owed(conn, lease, policy, state)
    while owed is not None and not owed.attempt_open:
        owed = await begin(conn, lease, policy, owed)
    return owed


def _was_acked(txn_id: str, state: LaneState, owed: Sealed | None) -> bool:
    """Whether it came before the one in flight: stop and wait, so whatever did was acknowledged."""
    named = _TXN_ID.fullmatch(txn_id)
    following = state.next_number if owed is None else owed.number
    return named is not None and named[1] == state.epoch and int(named[2]) < following
