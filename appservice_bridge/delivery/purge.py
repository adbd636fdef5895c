"""Deletes what was delivered, apart from the ack, so that no lane waits for it."""

import asyncio
from collections.abc import Container
from typing import Final

import structlog

from appservice_bridge.domain.waiting import set_within
from appservice_bridge.storage import outbox
from appservice_bridge.storage.database import Database, DatabaseUnavailableError

log = structlog.get_logger(__name__)

EVERY_SECONDS: Final = 2.0
BATCH: Final = 5000


async def run_purge(database: Database, stop: asyncio.Event, *, cleaned: Container[str]) -> None:
    """Purge until `stop` is set; dying between two batches leaves the rest for the next time.

    Of the appservices in `cleaned`, what was delivered may leave the homeserver's inbox, too.
    """
    while not stop.is_set():
        try:
            await purge_once(database, stop, cleaned=cleaned)
        except DatabaseUnavailableError as error:
            log.warning("purge.rests", reason=error.reason)
        await set_within(stop, EVERY_SECONDS)


async def purge_once(
    database: Database, stop: asyncio.Event, *, cleaned: Container[str] = ()
) -> int:
    """One round over all lanes, or until `stop` is set; returns the number of items deleted."""
    async with database.transaction() as conn:
        lanes = await outbox.purgeable(conn)
    purged = 0
    for lane in lanes:
        low = lane.purged_to
        while low < lane.acked_to and not stop.is_set():
            upto = min(low + BATCH, lane.acked_to)
            step = outbox.Purgeable(
                appservice_id=lane.appservice_id, purged_to=low, acked_to=lane.acked_to
            )
            async with database.transaction() as conn:
                clean = lane.appservice_id in cleaned
                purged += await outbox.purge(conn, step, upto=upto, clean=clean)
            low = upto
    return purged
