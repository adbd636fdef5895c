"""`/metrics`: what Prometheus asks a worker, read when it asks and kept for a few seconds."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog
from aiohttp import web

from appservice_bridge import __version__
from appservice_bridge.domain.budget import Budget
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.transport import Transport
from appservice_bridge.http.admin_auth import Role, needs
from appservice_bridge.storage import budget, capture_state, figures, overview, watch
from appservice_bridge.storage.database import Connection, Database, SourceUnreadableError
from appservice_bridge.storage.overview import LaneView
from appservice_bridge.telemetry import catalogue as of
from appservice_bridge.telemetry.deliveries import DeliveryMetrics
from appservice_bridge.telemetry.sheet import CONTENT_TYPE, Exposition, Sheet

log = structlog.get_logger(__name__)

PATH: Final = "/metrics"
KEPT_SECONDS: Final = 2.0  # however many ask, the database is asked once in that time
KEYS_KEPT_SECONDS: Final = 60.0
DATABASE_SECONDS: Final = 4.0  # less than a scrape may take


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The worker that is measured.

    Attributes:
        held: how many lanes it serves.
        may_send: whether its leases hold.
        keys_in_synapse: one-time keys are counted in the homeserver's tables.
    """

    database: Database
    deliveries: DeliveryMetrics
    held: Callable[[], int]
    may_send: Callable[[], bool]
    transports: Mapping[str, Transport]
    limits: Budget
    keys_in_synapse: bool


class Metrics:
    """Answers scrapes: each figure is one bounded query, and none is asked twice in two seconds.

    While the database is away a scrape has `up` 0, what this process counts, and nothing else.
    """

    def __init__(
        self, measured: Measured, *, open_to_all: bool, kept_seconds: float = KEPT_SECONDS
    ) -> None:
        self._measured = measured
        self._open = open_to_all
        self._kept_seconds = kept_seconds
        self._exposition = Exposition(measured.deliveries)
        self._one_reads = asyncio.Lock()
        self._text = b""
        self._text_until = 0.0
        self._low: Mapping[str, int] = {}
        self._low_until = 0.0

    def add_to(self, app: web.Application) -> None:
        """Serve it, to whoever asks or to those with a token."""
        app.router.add_get(PATH, self._to_all if self._open else self._to_viewers)

    @needs(Role.NOBODY)
    async def _to_all(self, _request: web.Request) -> web.Response:
        return await self._scraped()

    @needs(Role.VIEWER)
    async def _to_viewers(self, _request: web.Request) -> web.Response:
        return await self._scraped()

    async def _scraped(self) -> web.Response:
        clock = asyncio.get_running_loop().time
        async with self._one_reads:
            if clock() >= self._text_until:
                sheet = await self._sheet()
                self._text = await asyncio.to_thread(self._exposition.written, sheet)
                self._text_until = clock() + self._kept_seconds
        return web.Response(body=self._text, headers={"Content-Type": CONTENT_TYPE})

    async def _sheet(self) -> Sheet:
        sheet = Sheet()
        try:
            async with asyncio.timeout(DATABASE_SECONDS):
                await self._read(sheet)
        except (BridgeError, TimeoutError) as error:
            log.warning("metrics.not_read", reason=getattr(error, "reason", "timeout"))
            sheet = Sheet()
            sheet.add(of.UP, 0)
        else:
            sheet.add(of.UP, 1)
        measured = self._measured
        sheet.add(of.INFO, 1, __version__)
        sheet.add(of.LEASES_HELD, measured.held())
        sheet.add(of.LEASES_HOLD, measured.may_send())
        pool = measured.database.connections()
        sheet.add(of.POOL, pool.in_use, "in_use")
        sheet.add(of.POOL, pool.idle, "idle")
        sheet.add(of.POOL_LIMIT, pool.limit)
        return sheet

    async def _read(self, sheet: Sheet) -> None:
        async with self._measured.database.transaction() as conn:
            oldest = await figures.oldest_to_device(conn)
            lanes = await overview.lanes(conn, self._measured.transports)
            for lane in lanes:
                _lane(sheet, lane, oldest.get(lane.appservice_id))
            for one in await figures.ledger(conn):
                sheet.add(of.LEDGER, one.items, one.appservice_id, one.kind, one.outcome)
            await _bridge(sheet, conn)
            await self._budget(sheet, conn)
        low = await self._low_on_keys()
        for lane in lanes:
            sheet.add(of.LOW_DEVICES, low.get(lane.appservice_id, 0), lane.appservice_id)

    async def _budget(self, sheet: Sheet, conn: Connection) -> None:
        sheet.add(of.BUDGET_USED, (await watch.measure(conn)).used_bytes)
        sheet.add(of.BUDGET_LIMIT, self._measured.limits.total_bytes)
        sheet.add(of.BUDGET_USED_UP, await budget.is_used_up(conn))

    async def _low_on_keys(self) -> Mapping[str, int]:
        """Kept for longer: it looks at every device."""
        clock = asyncio.get_running_loop().time
        if clock() < self._low_until:
            return self._low
        read = figures.low_in_synapse if self._measured.keys_in_synapse else figures.low_as_said
        try:
            async with self._measured.database.beside_synapse() as conn:
                self._low = await read(conn)
        except SourceUnreadableError as error:
            log.warning("metrics.keys_not_read", reason=error.reason)
        self._low_until = clock() + KEYS_KEPT_SECONDS
        return self._low


def _lane(sheet: Sheet, lane: LaneView, oldest_to_device: float | None) -> None:
    id_ = lane.appservice_id
    sheet.add(of.WAITING_ITEMS, lane.waiting, id_)
    sheet.add(of.WAITING_BYTES, lane.waiting_bytes, id_)
    sheet.add(of.WAITING_UPDATES, lane.device_updates, id_)
    sheet.add(of.OLDEST, max(0.0, lane.oldest_seconds or 0.0), id_, "all")
    if oldest_to_device is None and lane.waiting <= figures.LOOKED_AT:
        oldest_to_device = 0.0
    sheet.add(of.OLDEST, oldest_to_device, id_, "to_device")
    sheet.add(of.STATE, 1, id_, lane.state)
    sheet.add(of.FAILED, lane.failed_attempts, id_)
    sheet.add(of.FAILING, _timestamp(lane.failing_since), id_)
    sheet.add(of.LAST_ACK, _timestamp(lane.last_ack_at), id_)
    sheet.add(of.KEPT_BYTES, lane.kept_bytes, id_)
    sheet.add(of.DEAD_LETTERS, lane.dead_letters, id_)


async def _bridge(sheet: Sheet, conn: Connection) -> None:
    seen, capture = await figures.bridge(conn), await capture_state.read(conn)
    sheet.add(of.DEAD_LETTERS, seen.dead_letters, "")
    sheet.add(of.LOG_FACTS, seen.facts)
    sheet.add(of.LOG_AGE, max(0.0, seen.oldest_seconds or 0.0))
    sheet.add(of.WORKERS, seen.workers)
    sheet.add(of.MODE, 1, capture.mode)
    sheet.add(of.DRIFT, len(capture.problems))
    sheet.add(of.UNREADABLE, len(capture.unreadable))
    sheet.add(of.LOOKED, _timestamp(capture.looked_at))


def _timestamp(when: datetime | None) -> float | None:
    return None if when is None else when.timestamp()
