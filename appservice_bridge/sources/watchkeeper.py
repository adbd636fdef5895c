"""Keeps the bridge within its budget, and tells the triggers that it is alive."""

import asyncio
from typing import Final

import structlog

from appservice_bridge.domain.budget import ALERTS, Budget
from appservice_bridge.domain.waiting import set_within
from appservice_bridge.routing.announcing import outlive_open_db_transactions
from appservice_bridge.sources.reconciler import refill
from appservice_bridge.storage import notifications, recomputing, watch
from appservice_bridge.storage.database import (
    Database,
    DatabaseUnavailableError,
    SourceUnreadableError,
)
from appservice_bridge.storage.watch import Size, Watch

log = structlog.get_logger(__name__)

EVERY_SECONDS: Final = 10.0
RECLAIM_SECONDS: Final = 60.0


class Watchkeeper:
    """Looks every so often how much is used, and says what follows.

    It may die anywhere: what the triggers were told last holds, and after a silence it is written
    down, in the write that ends it, that everything is to be recomputed, until that is done.
    """

    def __init__(self, database: Database, budget: Budget, *, reads_synapse: bool) -> None:
        self._database = database
        self._budget = budget
        self._reads_synapse = reads_synapse
        self._alert_level = 0
        self._reclaim_at = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Look until `stop` is set."""
        while not stop.is_set():
            try:
                await self.look_once()
            except DatabaseUnavailableError as error:
                log.warning("watch.rests", reason=error.reason)
            except SourceUnreadableError as error:  # what is owed stays noted
                log.warning("watch.left_out", reason=error.reason)
            await set_within(stop, EVERY_SECONDS)

    async def look_once(self) -> None:
        """Measure, beat, and tell the triggers what they may write.

        Raises:
            DatabaseUnavailableError, SourceUnreadableError: the rest is done next time.
        """
        async with self._database.transaction() as conn:
            told, size = await watch.read(conn), await watch.measure(conn)
        if told.silent and self._reads_synapse:
            await self._refill()  # before the triggers go on: what waited comes first
        self._alert(size.used_bytes)
        used_up = await self._tell(told, size)
        if told.silent or told.recompute:
            await self._recompute()
        if used_up:
            await self._reclaim()

    async def _refill(self) -> None:
        try:
            await refill(self._database)
        except SourceUnreadableError as error:  # the reconciler goes on trying
            log.warning("watch.left_out", reason=error.reason)

    async def _tell(self, told: Watch, size: Size) -> bool:
        """Beat, and say whether payloads may be written; returns whether they may not."""
        used_up = self._budget.is_used_up(size.used_bytes, was_used_up=told.keys_only)
        others_bytes = size.used_bytes - size.log_bytes
        log_limit_bytes = max(0, self._budget.total_bytes - others_bytes)
        async with self._database.transaction() as conn:
            await watch.beat(conn, log_limit_bytes=log_limit_bytes)
            if await watch.set_keys_only(conn, keys_only=used_up):
                log.warning("budget.used_up" if used_up else "budget.has_room")
        return used_up

    async def _recompute(self) -> None:
        """Make up for the triggers, when nobody is left who still goes by the silence."""
        if self._reads_synapse:
            await outlive_open_db_transactions(self._database)
        async with self._database.beside_synapse() as conn:
            if self._reads_synapse:
                await recomputing.append_devices(conn)
                await recomputing.append_users(conn)
            await watch.recomputed(conn)
            await notifications.wake_intake(conn)
        log.warning("watch.recomputed", silent_days_at_least=watch.SILENT_DAYS)

    def _alert(self, used_bytes: int) -> None:
        level = self._budget.alert_level(used_bytes, before=self._alert_level)
        if level > self._alert_level:
            log.error(
                "budget.alert",
                percent=round(100 * ALERTS[level - 1]),
                used_bytes=used_bytes,
                limit_bytes=self._budget.total_bytes,
            )
        self._alert_level = level

    async def _reclaim(self) -> None:
        """Give the disk back what was deleted: else what is empty may count as full for ever."""
        now = asyncio.get_running_loop().time()
        if now >= self._reclaim_at:
            self._reclaim_at = now + RECLAIM_SECONDS
            await watch.reclaim(self._database.dsn)
