"""Deletes what was delivered, apart from the ack, so that no lane waits for it."""

import asyncio
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Final

import structlog

from appservice_bridge.domain.budget import Budget
from appservice_bridge.domain.waiting import set_within
from appservice_bridge.storage import kept, outbox
from appservice_bridge.storage.budget import over_budget
from appservice_bridge.storage.database import Connection, Database, DatabaseUnavailableError
from appservice_bridge.storage.kept import Term
from appservice_bridge.storage.outbox import Purgeable

log = structlog.get_logger(__name__)

EVERY_SECONDS: Final = 2.0
BATCH: Final = 5000
TRANSACTIONS: Final = 100  # kept ones, in one DB transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What stays behind an ack.

    Attributes:
        cleaned: appservices whose delivered messages may leave the homeserver's inbox.
        keep_seconds: by appservice, how long what was delivered stays here; none: not at all.
        budget: what is kept counts as what waits, and gives way to it.
    """

    cleaned: Container[str] = ()
    keep_seconds: Mapping[str, float] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)


async def run_purge(database: Database, stop: asyncio.Event, retention: Retention) -> None:
    """Purge until `stop` is set; dying between two batches leaves the rest for the next time."""
    while not stop.is_set():
        try:
            await purge_once(database, stop, retention)
        except DatabaseUnavailableError as error:
            log.warning("purge.rests", reason=error.reason)
        await set_within(stop, EVERY_SECONDS)


async def purge_once(
    database: Database,
    stop: asyncio.Event,
    retention: Retention = Retention(),
) -> int:
    """One round over all lanes, or until `stop` is set; returns the number of items deleted."""
    async with database.transaction() as conn:
        lanes = await outbox.purgeable(conn)
    purged = 0
    for lane in lanes:
        if lane.keeps and lane.appservice_id in retention.cleaned:
            await _note_inbox(database, lane, stop)
        purged += await _purge_lane(database, lane, stop, retention)
    return purged


async def _purge_lane(
    database: Database, lane: Purgeable, stop: asyncio.Event, retention: Retention
) -> int:
    """Each batch is one DB transaction; the first that must stay ends it."""
    clean = lane.appservice_id in retention.cleaned
    purged, low = 0, lane.purged_to
    while low < lane.acked_to and not stop.is_set():
        async with database.transaction() as conn:
            upto = min(low + BATCH, await _purgeable_to(conn, lane, retention))
            if upto <= low:
                break
            step = outbox.Purgeable(
                appservice_id=lane.appservice_id, purged_to=low, acked_to=lane.acked_to
            )
            purged += await outbox.purge(conn, step, upto=upto, clean=clean)
        low = upto
    return purged


async def _purgeable_to(conn: Connection, lane: Purgeable, retention: Retention) -> int:
    """Up to where nothing has to stay, once those are released whose time is over."""
    if not lane.keeps:
        return lane.acked_to
    id_ = lane.appservice_id
    full = await over_budget(conn, [id_], appservice_bytes=retention.budget.appservice_bytes)
    term = Term(seconds=retention.keep_seconds.get(id_, 0.0), no_room=bool(full))
    kept_from = await kept.release(conn, id_, term, most=TRANSACTIONS)
    return lane.acked_to if kept_from is None else min(lane.acked_to, kept_from - 1)


async def _note_inbox(database: Database, lane: Purgeable, stop: asyncio.Event) -> None:
    """Dying in between leaves the rest for the next round: noting and knowing it are one commit."""
    noted = TRANSACTIONS
    while noted >= TRANSACTIONS and not stop.is_set():
        async with database.transaction() as conn:
            noted = await kept.note_inbox(conn, lane.appservice_id, most=TRANSACTIONS)
