"""Takes delivered messages out of Synapse's inbox: of exclusive users, and of no device that syncs.

Synapse keeps what an appservice was given for ever. A device that also calls /sync would miss
what is taken out, so it must be known not to. That can be seen in two ways, and both are looked
at before anything is deleted:

- Synapse itself deletes a device's messages when the device syncs on from them, and else only
  when the device is deleted. So after an ack a row rests for GRACE_SECONDS; if it is gone then
  and its device is there, that device syncs. It is remembered, and nothing of it is touched
  again until it is deleted.
- A row in sliding_sync_connections. Synapse makes it when sliding sync told the device of a room,
  and keeps it for a week after the last use. Where that table is not there or may not be read,
  this says nothing.

Nothing else in Synapse's database tells: last_seen and user_ips note requests of any kind, and of
appservices' tokens none at all. What remains unknown: a device that synced only before the bridge
came, or that first asks later than GRACE_SECONDS after an ack, as one that is asleep. It misses
what was taken out meanwhile. And a device that was deleted and made again under its old name
within the grace may be taken for one that syncs: its messages then stay in the inbox, no more.
"""

import asyncio
from collections import Counter
from collections.abc import Container, Sequence
from typing import Final

import structlog

from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.domain.owners import Owners
from appservice_bridge.domain.transaction import Kind
from appservice_bridge.domain.waiting import set_within
from appservice_bridge.storage import inbox_cleaning, ledger
from appservice_bridge.storage.database import (
    Connection,
    Database,
    DatabaseUnavailableError,
    SourceUnreadableError,
)
from appservice_bridge.storage.inbox_cleaning import Delivered, Device, InboxMovedError
from appservice_bridge.storage.ledger import LedgerKey

log = structlog.get_logger(__name__)

EVERY_SECONDS: Final = 5.0
UNREADABLE_PAUSE_SECONDS: Final = 30.0  # the drift guard says what is missing
GRACE_SECONDS: Final = 10.0
FORGET_EVERY_SECONDS: Final = 600.0
BATCH: Final = 100


class InboxCleaner:
    """Cleans for the appservices in `cleaned`, which opted in; one worker at a time."""

    def __init__(
        self,
        database: Database,
        owners: Owners,
        cleaned: Container[str],
        *,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._database = database
        self._owners = owners
        self._cleaned = cleaned
        self._grace_seconds = grace_seconds
        self._said_forbidden = False

    async def run(self, stop: asyncio.Event) -> None:
        """Clean every so often, until `stop` is set.

        Dying anywhere leaves the batch at hand undone: deleting and forgetting are one commit. A
        lock of the homeserver's that is not given at once is asked for again the next time.
        """
        clock = asyncio.get_running_loop().time
        forget_at = 0.0
        while not stop.is_set():
            try:
                if clock() >= forget_at:
                    await self._forget_devices()
                    forget_at = clock() + FORGET_EVERY_SECONDS
                await self.clean_once(stop)
            except DatabaseUnavailableError as error:
                log.info("inbox_cleaner.rests", reason=error.reason)
            except SourceUnreadableError as error:
                log.warning("inbox_cleaner.left_out", reason=error.reason)
                await set_within(stop, UNREADABLE_PAUSE_SECONDS)
            await set_within(stop, EVERY_SECONDS)

    async def clean_once(self, stop: asyncio.Event | None = None) -> int:
        """One round, or until `stop` is set; returns how many rows were deleted.

        Raises:
            DatabaseUnavailableError: also where a row of the inbox stayed locked.
            SourceUnreadableError: Synapse's tables are not as they were.
        """
        cleaned = 0
        while stop is None or not stop.is_set():
            try:
                async with self._database.beside_synapse() as conn:
                    settled, deleted = await self._batch(conn)
            except InboxMovedError:
                break
            cleaned += deleted
            if settled < BATCH:
                break
        return cleaned

    async def _batch(self, conn: Connection) -> tuple[int, int]:
        """Decide on one batch; returns how many rows that were, and how many were deleted."""
        await inbox_cleaning.be_brief(conn)
        if not await inbox_cleaning.hold(conn):
            return 0, 0
        rows = await inbox_cleaning.ripe(conn, grace_seconds=self._grace_seconds, limit=BATCH)
        if not rows:
            return 0, 0
        ours = [row for row in rows if self._may_go(row)] if await self._allowed(conn) else []
        syncing = await self._syncing(conn, ours)
        going = [row for row in ours if row.device not in syncing]
        await inbox_cleaning.settle(conn, rows)
        if going:
            await ledger.count(conn, _cleaned(going))
            await inbox_cleaning.clean(conn, [row.key for row in going])
        return len(rows), len(going)

    def _may_go(self, row: Delivered) -> bool:
        """Whether the user is this appservice's alone, and it wants that; all else stays."""
        if row.appservice_id not in self._cleaned or not row.device_exists:
            return False
        if self._owners.of(row.user_id) != (row.appservice_id,):
            return False
        return self._owners.registrations[row.appservice_id].owns_exclusively(
            row.user_id, server_name=self._owners.server_name
        )

    async def _allowed(self, conn: Connection) -> bool:
        """Whether the role may delete. Nothing is kept for a right that may never be given."""
        allowed = await inbox_cleaning.may_delete(conn)
        if not allowed and not self._said_forbidden:
            log.warning(
                "inbox_cleaner.forbidden",
                mend="run what install --print-grants prints, or set delete_delivered: off",
            )
        self._said_forbidden = not allowed
        return allowed

    async def _syncing(self, conn: Connection, rows: Sequence[Delivered]) -> set[Device]:
        """The devices that sync; those first seen to are remembered."""
        known = {row.device for row in rows if row.syncs}
        seen = {row.device for row in rows if not row.in_inbox}
        unsuspected = sorted({row.device for row in rows} - known - seen)
        seen |= await inbox_cleaning.sliding(conn, unsuspected)
        if fresh := sorted(seen - known):
            await inbox_cleaning.notice(conn, fresh)
            log.info("inbox_cleaner.devices_sync", devices=len(fresh))
        return known | seen

    async def _forget_devices(self) -> None:
        async with self._database.beside_synapse() as conn:
            await inbox_cleaning.forget_devices(conn)


def _cleaned(rows: Sequence[Delivered]) -> Counter[LedgerKey]:
    return Counter(
        LedgerKey(row.appservice_id, Kind.TO_DEVICE, LedgerOutcome.CLEANED) for row in rows
    )
