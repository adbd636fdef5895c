"""Finds in Synapse's inbox what its trigger had to leave out, and puts it into the log."""

import asyncio
from typing import Final

import structlog

from appservice_bridge.storage import capture_log, inbox, intake
from appservice_bridge.storage.database import Database, DatabaseUnavailableError

log = structlog.get_logger(__name__)

EVERY_SECONDS: Final = 30.0
FLOOR_REST_SECONDS: Final = 600.0
BATCH: Final = 1000


async def run_reconciler(
    database: Database, stop: asyncio.Event, *, every_seconds: float = EVERY_SECONDS
) -> None:
    """Compare inbox and log every so often, until `stop` is set.

    Dying anywhere leaves both as they were; what is appended twice, intake tells by its key.
    """
    while not stop.is_set():
        try:
            await reconcile_once(database)
        except DatabaseUnavailableError as error:
            log.warning("reconciler.rests", reason=error.reason)
        try:
            async with asyncio.timeout(every_seconds):
                await stop.wait()
        except TimeoutError:
            continue


async def reconcile_once(
    database: Database, *, floor_rest_seconds: float = FLOOR_REST_SECONDS
) -> int:
    """One comparison; returns how many messages the triggers had left out."""
    found = 0
    while appended := await _append_missed(database):
        found += appended
    async with database.transaction() as conn:
        await inbox.move_floor(conn, rest_seconds=floor_rest_seconds)
    while True:
        async with database.transaction() as conn:
            if await inbox.forget_taken(conn, batch=BATCH) < BATCH:
                break
    return found


async def _append_missed(database: Database) -> int:
    async with database.transaction() as conn:
        appended = await inbox.append_missed(conn, limit=BATCH)
        if appended:
            await intake.count(conn, {("", "to_device", "reconciled"): appended})
            await capture_log.notify(conn)
    if appended:
        log.warning("reconciler.found", messages=appended)
    return appended or 0
