"""Forgets repeats that can no longer come, and old audits, so that memory stays bounded."""

import asyncio
from typing import Final

import structlog

from appservice_bridge.domain.waiting import set_within
from appservice_bridge.storage import admin_audit, ingest, repeats
from appservice_bridge.storage.database import Database, DatabaseUnavailableError

log = structlog.get_logger(__name__)

EVERY_SECONDS: Final = 600.0


async def run_forgetting(database: Database, stop: asyncio.Event) -> None:
    """Forget what is too old, in batches, until `stop` is set."""
    while not stop.is_set():
        pause = EVERY_SECONDS
        try:
            async with database.transaction() as conn:
                forgotten = await repeats.forget(conn)
                batches = await ingest.forget(conn, days=repeats.KEEP_DAYS, batch=repeats.BATCH)
                entries = await admin_audit.forget(conn, batch=repeats.BATCH)
                if max(forgotten, batches, entries) >= repeats.BATCH:
                    pause = 0.1
        except DatabaseUnavailableError as error:
            log.warning("forgetting.rests", reason=error.reason)
        await set_within(stop, pause)
