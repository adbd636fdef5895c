"""The one consumer of the capture log: route, tell repeats, append, consume, commit."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeAlias

import structlog

from appservice_bridge.domain.budget import Budget
from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.domain.owners import Owners
from appservice_bridge.domain.waiting import set_within
from appservice_bridge.routing import key_only
from appservice_bridge.routing.candidates import Candidate
from appservice_bridge.routing.device_changes import DeviceChanges
from appservice_bridge.routing.read_ahead import LookedAt, ReadAhead
from appservice_bridge.routing.route import route_rows
from appservice_bridge.routing.straight import straight_items
from appservice_bridge.storage import (
    capture_log,
    dead_letters,
    deleted_devices,
    device_updates,
    foreign_users,
    ledger,
    outbox,
    repeats,
    straight,
)
from appservice_bridge.storage.database import (
    Connection,
    Database,
    DatabaseUnavailableError,
    RefusedRowError,
)
from appservice_bridge.storage.deleted_devices import DeletedInbox
from appservice_bridge.storage.ledger import LedgerKey
from appservice_bridge.storage.straight import Grown

log = structlog.get_logger(__name__)

MAX_ROWS: Final = 1000
STRAIGHT_ROWS: Final = 4000  # while batches go straight
MAX_BYTES: Final = 16 * 1024 * 1024
POLL_SECONDS: Final = 1.0  # the wake-up is a courtesy; the poll alone must do
FOLLOW_UP_SECONDS: Final = 0.006  # within five milliseconds of a wake-up nobody sends another
PATIENCE_SECONDS: Final = 1.0  # with a writer that drew a number and does not commit
SWEEP_SECONDS: Final = 60.0

_Device: TypeAlias = tuple[str, str | None, str | None]  # appservice, user, device


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """What one pass did.

    Attributes:
        appended: the appservices whose outbox grew, and by what, where that is known.
        rows: how many it consumed.
        done: nothing that was there to read is left.
        more_may_come: somebody was writing meanwhile, who may wake nobody.
        swept: of a sweep, nothing that it looks for is left: no row below the head.
    """

    appended: Grown = field(default_factory=dict)
    rows: int = 0
    done: bool = True
    more_may_come: bool = False
    swept: bool = True


class Intake:
    """Consumes the log for one set of registrations, while no other worker does.

    Dying anywhere in a pass leaves the log as it was: the DB transaction is not committed.
    """

    def __init__(
        self,
        database: Database,
        owners: Owners,
        on_append: Callable[[Grown], Awaitable[None]],
        budget: Budget = Budget(),  # noqa: B008 - frozen
    ) -> None:
        self._database = database
        self._owners = owners
        self._digest = owners.digest()
        self._on_append = on_append
        self._budget = budget
        self._max_rows = MAX_ROWS
        self._first_seq: int | None = None
        self._ahead: LookedAt | None = None  # read while another was routed
        self._alone = True  # as far as is known, no other worker consumes
        self.wake = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop` is set; a database that is away is waited for."""
        clock = asyncio.get_running_loop().time
        sweep_at, busy_until = 0.0, 0.0
        while not stop.is_set():
            self.wake.clear()
            sweep = clock() >= sweep_at
            try:
                passed = await self.consume_once(sweep=sweep)
            except DatabaseUnavailableError as error:
                log.warning("intake.rests", reason=error.reason)
                passed = Passed()
            else:
                if sweep and passed.swept:
                    sweep_at = clock() + SWEEP_SECONDS
            if passed.rows:
                busy_until = clock() + PATIENCE_SECONDS
            if passed.done:
                await set_within(self.wake, _next_look(passed, busy=clock() < busy_until))

    async def consume_once(self, *, sweep: bool = False) -> Passed:
        """One pass over the log.

        A value that Postgres refuses is halved down to and buried, so that it costs one row.

        Raises:
            DatabaseUnavailableError: nothing was consumed, or the commit's answer was lost.
        """
        with ReadAhead() as ahead:
            most = STRAIGHT_ROWS
            try:
                passed = await self._straight(ahead, sweep=sweep) if self._alone else None
                if passed is None:
                    most = MAX_ROWS
                    passed = await self._the_long_way(sweep=sweep)
            except RefusedRowError as error:
                return await self._halve_or_bury(error, sweep=sweep)
            self._max_rows = min(self._max_rows * 2, most)
            if passed.appended:
                await self._on_append(passed.appended)
            self._ahead = await ahead.batch()
        return passed

    async def _straight(self, ahead: ReadAhead, *, sweep: bool) -> Passed | None:
        """Look without the gate, and take it with the one statement that does all.

        None, and nothing is done, where a batch has to go the long way, or another is the intake.
        """
        looked, self._ahead = self._ahead, None
        async with self._database.statement() as conn:
            if looked is None or looked.batch.whole or sweep:  # more may have come behind it
                looked = self._looked_at(await self._read(conn, sweep=sweep))
            if looked is None:
                return None
            batch, items = looked
            if batch.empty:
                return Passed(more_may_come=batch.more_may_come)
            if items is None:
                return None
            self._first_seq = batch.rows[0].seq
            if not batch.whole and not sweep:
                ahead.begin(partial(self._read_behind, batch))
            limit = self._budget.appservice_bytes
            went = await straight.route(conn, batch, self._digest, items, appservice_bytes=limit)
        if went is None:
            self._alone = False
            return None
        ahead.routed(went.intake_at)
        return _passed(batch, went.grown)

    async def _read_behind(self, batch: capture_log.Batch) -> LookedAt | None:
        async with self._database.statement() as conn:
            read = await self._read(conn, sweep=False, behind=batch)
        return self._looked_at(read)

    def _looked_at(self, read: capture_log.Batch | None) -> LookedAt | None:
        return None if read is None else LookedAt(read, straight_items(read.rows, self._owners))

    async def _the_long_way(self, *, sweep: bool) -> Passed:
        """Hold the gate, look, and do one thing after the other, in one DB transaction."""
        async with self._database.transaction() as conn:
            if not await capture_log.hold_gate(conn, self._digest):
                self._alone = False
                if sweep and not await capture_log.same_registrations(conn, self._digest):
                    log.warning("intake.other_registrations", mend="give all workers the same")
                return Passed()
            batch = await self._read(conn, sweep=sweep, max_rows=min(self._max_rows, MAX_ROWS))
            if batch is None or batch.empty:
                return Passed(more_may_come=batch is not None and batch.more_may_come)
            self._first_seq = batch.rows[0].seq if batch.rows else None
            appended = await self._route(conn, batch)
            await capture_log.consume(conn, batch)
        self._alone = True
        return _passed(batch, dict.fromkeys(appended, ()))

    async def _read(
        self,
        conn: Connection,
        *,
        sweep: bool,
        max_rows: int | None = None,
        behind: capture_log.Batch | None = None,
    ) -> capture_log.Batch | None:
        return await capture_log.read(
            conn,
            self._digest,
            max_rows=max_rows or self._max_rows,
            max_bytes=MAX_BYTES,
            sweep=sweep,
            behind=behind,
        )

    async def _route(self, conn: Connection, batch: capture_log.Batch) -> set[str]:
        rows = await key_only.with_bodies(conn, batch.rows, max_bytes=MAX_BYTES)
        routing = route_rows(rows, self._owners, await self._withdrawn(conn, rows))
        inbox_keys, event_keys = routing.inbox_keys(), routing.event_keys()
        fresh_inbox = await repeats.take(conn, inbox_keys) if inbox_keys else set()
        fresh_events = await repeats.first_seen(conn, event_keys) if event_keys else set()
        new = routing.only_new(fresh_inbox | fresh_events)
        if routing.foreign:
            await foreign_users.add(conn, routing.foreign)
        appended = await _append(conn, new, routing.counts, self._budget)
        appended |= await _tell_of_devices(conn, routing.devices, self._owners)
        if routing.counts:
            await ledger.count(conn, routing.counts)
        return appended

    async def _withdrawn(
        self, conn: Connection, rows: Sequence[capture_log.Captured]
    ) -> frozenset[str]:
        """Whom these rows were taken for who was registered then; their outboxes are still there.

        The homeserver was told that it has arrived: only an operator may lose it.
        """
        named = {row.appservice_id for row in rows if row.appservice_id is not None}
        away = named - self._owners.registrations.keys()
        return await outbox.existing(conn, away) if away else frozenset()

    async def _halve_or_bury(self, error: RefusedRowError, *, sweep: bool) -> Passed:
        """Come closer to the row that is refused; bury it when it stands alone."""
        if self._max_rows > 1:
            self._max_rows //= 2
            return Passed(done=False, swept=False)
        async with self._database.transaction() as conn:
            if await capture_log.hold_gate(conn, self._digest):
                batch = await self._read(conn, sweep=sweep, max_rows=1)
                if batch is not None:
                    await self._bury(conn, batch, error)
        return Passed(done=False, swept=False)

    async def _bury(
        self, conn: Connection, batch: capture_log.Batch, error: RefusedRowError
    ) -> None:
        """Bury the row that was refused, unless another worker did; and keep it from coming back.

        It is taken, so that the reconciler does not find it in the inbox again and again.
        """
        if not batch.rows or batch.rows[0].seq != self._first_seq:
            return
        await dead_letters.bury_rows(conn, batch, reason=error.reason)
        row = batch.rows[0]
        if row.user_id is not None and row.device_id is not None and row.stream_id is not None:
            await repeats.take(conn, [repeats.InboxKey(row.user_id, row.device_id, row.stream_id)])
        log.error("intake.buried", reason=error.reason)


def _passed(batch: capture_log.Batch, appended: Grown) -> Passed:
    return Passed(
        appended=appended,
        rows=len(batch.rows),
        done=batch.whole,
        more_may_come=batch.more_may_come,
        swept=batch.whole or batch.rows[-1].seq > batch.gate.head,
    )


def _next_look(passed: Passed, *, busy: bool) -> float:
    """In how many seconds the log is looked at again, if nobody wakes intake before."""
    soon = passed.rows or (passed.more_may_come and busy)
    return FOLLOW_UP_SECONDS if soon else POLL_SECONDS


async def _append(
    conn: Connection, new: list[Candidate], counts: Counter[LedgerKey], budget: Budget
) -> set[str]:
    await _mark_deleted(conn, new)  # of what was routed before this batch
    routed = _outliving_their_devices(new, counts)
    buried = [item for candidate in new for item in candidate.buried]
    counts.update(LedgerKey(item.appservice_id, item.kind, LedgerOutcome.ROUTED) for item in routed)
    counts.update(
        LedgerKey(item.appservice_id, item.kind, LedgerOutcome.REFUSED) for item in buried
    )
    if routed:
        await outbox.append(conn, await key_only.spared(conn, routed, budget))
    if buried:
        await dead_letters.bury(conn, buried)
    return {item.appservice_id for item in routed}


async def _mark_deleted(conn: Connection, new: list[Candidate]) -> None:
    deleted = sorted({device for candidate in new for device in candidate.deleted})
    if deleted:
        await deleted_devices.mark(conn, deleted)
        await dead_letters.lose_devices(conn, deleted)
    emptied: dict[_Device, DeletedInbox] = {}
    for inbox in sorted(inbox for candidate in new for inbox in candidate.emptied):
        emptied[inbox[:3]] = inbox  # the furthest is the last
    if emptied:
        await deleted_devices.mark_inbox(conn, list(emptied.values()))
        await dead_letters.lose_inboxes(conn, list(emptied.values()))


def _outliving_their_devices(
    new: list[Candidate], counts: Counter[LedgerKey]
) -> list[outbox.Routed]:
    """The items of a batch, without those whose device the same batch deletes later on."""
    kept: list[outbox.Routed] = []
    deleted: set[_Device] = set()
    emptied: dict[_Device, int] = {}
    for candidate in reversed(new):
        deleted.update(candidate.deleted)
        for inbox in candidate.emptied:
            emptied[inbox[:3]] = max(inbox.upto, emptied.get(inbox[:3], 0))
        for item in reversed(candidate.routed):
            device = (item.appservice_id, item.user_id, item.device_id)
            gone = item.stream_id is not None and item.stream_id <= emptied.get(device, 0)
            if gone or device in deleted:
                for outcome in (LedgerOutcome.ROUTED, LedgerOutcome.DROPPED):
                    counts[LedgerKey(item.appservice_id, item.kind, outcome)] += 1
            else:
                kept.append(item)
    return kept[::-1]


async def _tell_of_devices(conn: Connection, changes: DeviceChanges, owners: Owners) -> set[str]:
    """Let device lists and key counts wait for the next transactions; returns whose."""
    keys = changes.stream_keys()
    fresh = await repeats.take_changes(conn, keys) if keys else set()
    users = changes.apply_fresh(fresh, owners)
    tracking = await device_updates.change_tracked(conn, sorted(users)) if users else set()
    if changes.if_tracked:
        tracking |= await device_updates.change_if_tracked(conn, sorted(changes.if_tracked))
    if changes.lists:
        await device_updates.change_lists(conn, changes.lists)
    if changes.deleted:
        await device_updates.forget_devices(conn, sorted(changes.deleted))
    if changes.keys:
        await device_updates.change_keys(conn, changes.keys)
    told = {key.appservice_id for key in changes.lists}
    return told | tracking | {key.appservice_id for key in changes.keys}
