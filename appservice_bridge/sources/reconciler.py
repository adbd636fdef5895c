"""Finds in Synapse's inbox what its trigger had to leave out, and puts it into the log."""

import asyncio
from typing import Final

import structlog

from appservice_bridge.domain.waiting import set_within
from appservice_bridge.storage import inbox, ledger, notifications
from appservice_bridge.storage.capture_log import CapturedKind
from appservice_bridge.storage.database import Database, DatabaseUnavailableError

log = structlog.get_logger(__name__)

EVERY_SECONDS: Final = 30.0
FLOOR_SETTLE_SECONDS: Final = 600.0
BATCH: Final = 1000


async def run_reconciler(
    database: Database, stop: asyncio.Event, *, every_seconds: float = EVERY_SECONDS
) -> None:
    """Compare inbox and log every so often, until `stop` is set.

    Dying anywhere leaves both as they were; what is appended twice, intake tells by its key.
    """
    looked_to = 0
    while not stop.is_set():
        try:
            await reconcile_once(database)
            async with database.transaction() as conn:
                looked_to = await inbox.forget_gone(conn, after=looked_to, batch=BATCH)
        except DatabaseUnavailableError as error:
            log.warning("reconciler.rests", reason=error.reason)
        await set_within(stop, every_seconds)


async def reconcile_once(
    database: Database, *, floor_settle_seconds: float = FLOOR_SETTLE_SECONDS
) -> int:
    """One comparison; returns how many messages the triggers had left out."""
    found = 0
    while appended := await _append_missed(database, floor_settle_seconds):
        found += appended
    while True:
        async with database.transaction() as conn:
            if await inbox.forget_taken(conn, batch=BATCH) < BATCH:
                break
    return found


async def refill(database: Database) -> None:
    """Append what the inbox holds and nobody took, down to the last batch; the rest comes later."""
    while await _append_missed(database, FLOOR_SETTLE_SECONDS) >= BATCH:
        pass


async def _append_missed(database: Database, floor_settle_seconds: float) -> int:
    """Append one batch; the floor moves only where the same look found nothing below it."""
    async with database.transaction() as conn:
        appended = await inbox.append_missed(conn, limit=BATCH)
        if appended == 0:
            await inbox.move_floor(conn, settle_seconds=floor_settle_seconds)
        elif appended is not None:
            key = ledger.LedgerKey("", CapturedKind.TO_DEVICE, "reconciled")
            await ledger.count(conn, {key: appended})
            await notifications.notify(conn, notifications.CAPTURE)
    if appended:
        log.warning("reconciler.found", messages=appended)
    return appended or 0
