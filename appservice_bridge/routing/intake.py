"""The one consumer of the capture log: route, tell repeats, append, consume, commit."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

import structlog

from appservice_bridge.domain.owners import Owners
from appservice_bridge.routing.sorting import Candidate, sort_rows
from appservice_bridge.storage import intake as store
from appservice_bridge.storage.database import (
    Connection,
    Database,
    DatabaseUnavailableError,
    RefusedRowError,
)

log = structlog.get_logger(__name__)

MAX_ROWS: Final = 1000
MAX_BYTES: Final = 16 * 1024 * 1024
POLL_SECONDS: Final = 1.0  # the wake-up is a courtesy; the poll alone must do
SWEEP_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """What one pass did.

    Attributes:
        appended: the appservices whose outbox grew.
        done: nothing that was there to read is left.
    """

    appended: frozenset[str] = frozenset()
    done: bool = True


class Intake:
    """Consumes the log for one set of registrations, while no other worker does.

    Dying anywhere in a pass leaves the log as it was: the DB transaction is not committed.
    """

    def __init__(
        self,
        database: Database,
        owners: Owners,
        on_append: Callable[[Iterable[str]], Awaitable[None]],
    ) -> None:
        self._database = database
        self._owners = owners
        self._digest = owners.digest()
        self._on_append = on_append
        self._max_rows = MAX_ROWS
        self.wake = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop` is set; a database that is away is waited for."""
        clock = asyncio.get_running_loop().time
        sweep_at = 0.0
        while not stop.is_set():
            self.wake.clear()
            sweep = clock() >= sweep_at
            try:
                passed = await self.consume_once(sweep=sweep)
            except DatabaseUnavailableError as error:
                log.warning("intake.rests", reason=error.reason)
                passed = Passed()
            else:
                if sweep and passed.done:
                    sweep_at = clock() + SWEEP_SECONDS
            if passed.done:
                await self._wait()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await self.wake.wait()
        except TimeoutError:
            return

    async def consume_once(self, *, sweep: bool = False) -> Passed:
        """One pass over the log.

        A value that Postgres refuses is halved down to and buried, so that it costs one row.

        Raises:
            DatabaseUnavailableError: nothing was consumed, or the commit's answer was lost.
        """
        try:
            async with self._database.transaction() as conn:
                passed = await self._pass(conn, sweep=sweep)
        except RefusedRowError as error:
            return await self._halve_or_bury(error, sweep=sweep)
        self._max_rows = min(self._max_rows * 2, MAX_ROWS)
        if passed.appended:
            await self._on_append(passed.appended)
        return passed

    async def _pass(self, conn: Connection, *, sweep: bool) -> Passed:
        gate = await store.hold_gate(conn, self._digest)
        if gate is None:
            if sweep and not await store.same_registrations(conn, self._digest):
                log.warning("intake.other_registrations", mend="give all workers the same")
            return Passed()
        batch = await store.read_log(
            conn, gate, max_rows=self._max_rows, max_bytes=MAX_BYTES, sweep=sweep
        )
        if not batch.rows and not any(gap.settled for gap in gate.gaps):
            return Passed()
        appended = await self._route(conn, batch)
        await store.consume(conn, batch)
        return Passed(appended=frozenset(appended), done=batch.whole)

    async def _route(self, conn: Connection, batch: store.Batch) -> set[str]:
        found = sort_rows(batch.rows, self._owners)
        inbox_keys, event_keys = found.inbox_keys(), found.event_keys()
        fresh_inbox = await store.take(conn, inbox_keys) if inbox_keys else set()
        fresh_events = await store.first_seen(conn, event_keys) if event_keys else set()
        new = found.only_new(fresh_inbox | fresh_events)
        if found.foreign:
            await store.add_foreign(conn, found.foreign)
        appended = await _append(conn, new, found.counts)
        if found.counts:
            await store.count(conn, found.counts)
        return appended

    async def _halve_or_bury(self, error: RefusedRowError, *, sweep: bool) -> Passed:
        """Come closer to the row that is refused; bury it when it stands alone."""
        if self._max_rows > 1:
            self._max_rows //= 2
            return Passed(done=False)
        async with self._database.transaction() as conn:
            gate = await store.hold_gate(conn, self._digest)
            if gate is not None:
                batch = await store.read_log(
                    conn, gate, max_rows=1, max_bytes=MAX_BYTES, sweep=sweep
                )
                await store.bury_rows(conn, batch, reason=error.reason)
                log.error("intake.buried", reason=error.reason, rows=len(batch.rows))
        return Passed(done=False)


async def _append(
    conn: Connection, new: list[Candidate], counts: dict[tuple[str, str, str], int]
) -> set[str]:
    routed = [item for candidate in new for item in candidate.routed]
    buried = [item for candidate in new for item in candidate.buried]
    for item in routed:
        key = (item.appservice_id, item.kind, "routed")
        counts[key] = counts.get(key, 0) + 1
    for dead in buried:
        key = (dead.appservice_id, dead.kind, "buried")
        counts[key] = counts.get(key, 0) + 1
    if routed:
        await store.append(conn, routed)
    if buried:
        await store.bury(conn, buried)
    return {item.appservice_id for item in routed}
