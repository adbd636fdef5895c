"""Finds in Synapse's tables what the triggers had to leave out, and puts it into the log."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Protocol

import structlog

from appservice_bridge.domain.capture import CaptureMode
from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.domain.waiting import set_within
from appservice_bridge.storage import (
    capture_state,
    device_streams,
    inbox,
    inbox_deletions,
    key_changes,
    ledger,
    notifications,
)
from appservice_bridge.storage.capture_log import CapturedKind
from appservice_bridge.storage.capture_state import CaptureState
from appservice_bridge.storage.database import (
    Connection,
    Database,
    DatabaseUnavailableError,
    SourceUnreadableError,
)

log = structlog.get_logger(__name__)

EVERY_SECONDS: Final = 30.0
FLOOR_SETTLE_SECONDS: Final = 600.0
RECOUNT_SECONDS: Final = 600.0
BATCH: Final = 1000


async def run_reconciler(
    database: Database,
    stop: asyncio.Event,
    *,
    server_name: str,
    every_seconds: float = EVERY_SECONDS,
) -> None:
    """Compare tables and log every so often, until `stop` is set.

    Dying anywhere leaves both as they were; what is appended twice, intake tells by its key.
    """
    looked_to = 0

    async def forget_gone() -> int:
        nonlocal looked_to
        async with database.beside_synapse() as conn:
            looked_to = await inbox.forget_gone(conn, after=looked_to, batch=BATCH)
        return looked_to

    parts: tuple[Callable[[], Awaitable[object]], ...] = (
        partial(reconcile_once, database),
        forget_gone,
        partial(_forget, database, inbox_deletions.forget_taken),
        partial(reconcile_device_streams, database, server_name=server_name),
        partial(reconcile_keys, database),
        partial(recount_keys, database),
    )
    while not stop.is_set():
        for part in parts:
            try:
                await part()
            except DatabaseUnavailableError as error:
                log.warning("reconciler.rests", reason=error.reason)
            except SourceUnreadableError as error:
                log.warning("reconciler.left_out", reason=error.reason)
        await set_within(stop, every_seconds)


async def reconcile_once(
    database: Database, *, floor_settle_seconds: float = FLOOR_SETTLE_SECONDS
) -> int:
    """One comparison of the inbox; returns how many messages the triggers had left out.

    Raises:
        SourceUnreadableError: the inbox is not as it was.
    """
    found = 0
    while appended := await _append_missed(database, floor_settle_seconds):
        found += appended
    await _forget(database, inbox.forget_taken)
    return found


async def reconcile_device_streams(
    database: Database, *, server_name: str, floor_settle_seconds: float = FLOOR_SETTLE_SECONDS
) -> int:
    """The same of device lists and signatures; returns how many were left out.

    Raises:
        SourceUnreadableError: the tables are not as they were.
    """

    async def step(conn: Connection, state: CaptureState) -> int | None:
        return await device_streams.append_missed(
            conn,
            limit=BATCH,
            server_name=server_name,
            unreadable=state.unreadable,
            settle=floor_settle_seconds,
        )

    found = await _append_all(database, step)
    await _forget(database, device_streams.forget_taken)
    return found


async def reconcile_keys(
    database: Database, *, floor_settle_seconds: float = FLOOR_SETTLE_SECONDS
) -> int:
    """Mark devices whose keys changed and were not captured; returns how many signs were new.

    Raises:
        SourceUnreadableError: the table is not as it was.
    """

    async def step(conn: Connection, state: CaptureState) -> int | None:
        captured_too = state.mode is CaptureMode.TRIGGERS
        return await key_changes.append_missed(
            conn, limit=BATCH, captured_too=captured_too, settle=floor_settle_seconds
        )

    found = await _append_all(database, step)
    await _forget(database, key_changes.forget_taken)
    return found


async def recount_keys(database: Database, *, every_seconds: float = RECOUNT_SECONDS) -> int:
    """Every so often count the keys of all devices told of; returns how many came to another sum.

    It finds what neither a trigger nor Synapse's stream of caches told. Dying in between leaves
    the rest to the next turn.

    Raises:
        SourceUnreadableError: the tables are not as they were.
    """
    async with database.transaction() as conn:
        if not await key_changes.take_turn(conn, every_seconds=every_seconds):
            return 0
    found, device = 0, key_changes.Device("", "")
    while True:
        async with database.transaction() as conn:
            last, marked = await key_changes.recount(conn, device, batch=BATCH)
            if marked:
                await notifications.wake_intake(conn)
        found += marked
        if last is None:
            return found
        device = last


async def refill(database: Database) -> None:
    """Append what the inbox holds and nobody took, down to the last batch; the rest comes later."""
    while True:
        appended = await _append_missed(database, FLOOR_SETTLE_SECONDS)
        if appended is None:  # who compares now must be done first
            await asyncio.sleep(0.05)
        elif appended < BATCH:
            return


async def _append_missed(database: Database, floor_settle_seconds: float) -> int | None:
    """Append one batch; None if another worker compares.

    The floor moves only where the same look found nothing below it.
    """
    async with database.transaction() as conn:
        appended = await inbox.append_missed(conn, limit=BATCH)
        if appended == 0:
            await inbox.move_floor(conn, settle_seconds=floor_settle_seconds)
        elif appended is not None:
            key = ledger.LedgerKey("", CapturedKind.TO_DEVICE, LedgerOutcome.RECONCILED)
            await ledger.count(conn, {key: appended})
            await notifications.wake_intake(conn)
    if appended:
        log.warning("reconciler.found", messages=appended)
    return appended


async def _append_all(
    database: Database, step: Callable[[Connection, CaptureState], Awaitable[int | None]]
) -> int:
    """Repeat a step in DB transactions of its own until it finds no full batch; returns its sum."""
    found, appended = 0, BATCH
    while appended >= BATCH:
        async with database.transaction() as conn:
            appended = await step(conn, await capture_state.read(conn)) or 0
            if appended:
                await notifications.wake_intake(conn)
        found += appended
    return found


class _Forget(Protocol):
    def __call__(self, conn: Connection, *, batch: int) -> Awaitable[int]: ...


async def _forget(database: Database, forget: _Forget) -> None:
    """Forget what lies below the floor, in batches."""
    forgotten = BATCH
    while forgotten >= BATCH:
        async with database.transaction() as conn:
            forgotten = await forget(conn, batch=BATCH)
