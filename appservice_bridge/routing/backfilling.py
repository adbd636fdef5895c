"""An operator's order: deliver what the homeserver's inbox still holds from before the bridge."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from appservice_bridge.domain.author import Author
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.domain.owners import Owners
from appservice_bridge.domain.progress import Tell, nobody
from appservice_bridge.storage import (
    admin_audit,
    capture_log,
    ledger,
    notifications,
    registrations,
    synapse,
)
from appservice_bridge.storage import backfill as inbox
from appservice_bridge.storage.database import Connection, Database
from appservice_bridge.storage.orders import UnknownAppserviceError
from appservice_bridge.storage.repeats import InboxKey

ACTION: Final = "backfill"
PAGE: Final = 5000


class NoInboxError(BridgeError):
    """There is no inbox that could be read."""

    def __init__(self) -> None:
        super().__init__(
            "backfill reads the inbox of Synapse's database, and homeserver.kind is generic or "
            "homeserver.capture is none: there is nothing it could read"
        )


class NotAnnouncedError(BridgeError):
    """The workers route by other registrations, and would route what is appended by those."""

    def __init__(self) -> None:
        super().__init__(
            "no worker has run with these registrations yet: start `appservice-bridge run` once "
            "with this configuration"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Backfilled:
    """What was found in the inbox: so many messages of so many devices."""

    messages: int
    devices: int


class Backfill:
    """Goes through the inbox, for one appservice; may be stopped and run again at any time.

    A message goes to every appservice that owns its user, as always, and behind all that waits.
    Those that were routed before are left out, and so are those of deleted devices.
    """

    def __init__(
        self,
        database: Database,
        owners: Owners,
        appservice_id: str,
        *,
        reads_synapse: bool,
        tell: Tell = nobody,
    ) -> None:
        self._database = database
        self._reads_synapse = reads_synapse
        self._owners = owners
        self._appservice_id = appservice_id
        self._tell = tell

    async def run(self, *, by: Author) -> Backfilled:
        """Append what is missing.

        Raises:
            NoInboxError, UnknownAppserviceError, NotAnnouncedError: as they say.
            SourceUnreadableError: Synapse's tables are not as they were.
        """
        bounds = await self._bounds()
        await self._put_down(by, "begun")
        found = await self._all_pages(bounds, append=True)
        await self._put_down(by, f"{found.messages} messages of {found.devices} devices")
        return found

    async def look(self) -> Backfilled:
        """Only count what is missing.

        Raises:
            NoInboxError, UnknownAppserviceError, NotAnnouncedError: as they say.
        """
        return await self._all_pages(await self._bounds(), append=False)

    async def _bounds(self) -> dict[str, int]:
        """Where each appservice was attached, once it is sure that a backfill can be done."""
        if not self._reads_synapse:
            raise NoInboxError
        if self._appservice_id not in self._owners.registrations:
            raise UnknownAppserviceError(self._appservice_id, self._owners.registrations)
        async with self._database.beside_synapse() as conn:
            await synapse.require_synapse(conn)
            bounds = await registrations.attached(conn)
            same = await capture_log.same_registrations(conn, self._owners.digest())
        if not same or self._appservice_id not in bounds:
            raise NotAnnouncedError
        return bounds

    async def _all_pages(self, bounds: dict[str, int], *, append: bool) -> Backfilled:
        devices: set[tuple[str, str]] = set()
        messages = 0
        async for keys in self._pages(bounds, append=append):
            devices |= {key[:2] for key in keys}
            messages += len(keys)
        return Backfilled(messages=messages, devices=len(devices))

    async def _pages(
        self, bounds: dict[str, int], *, append: bool
    ) -> AsyncIterator[list[InboxKey]]:
        """Go through the inbox's stream; each page is one DB transaction.

        Dying in a page leaves it undone; what earlier ones appended is found in the log, or taken.
        """
        after, upto = 0, bounds[self._appservice_id]
        while True:
            async with self._database.beside_synapse() as conn:
                page = await inbox.page(conn, after=after, upto=upto, size=PAGE)
                if page is None:
                    return
                await inbox.hold_floor(conn)
                users = self._users(page.user_ids, bounds)
                keys = await inbox.missing(conn, after=after, upto=page.upto, bounds=users)
                if append and keys:
                    await self._append(conn, keys)
            yield keys
            after = page.upto
            self._tell(after, upto)

    def _users(self, user_ids: frozenset[str], bounds: dict[str, int]) -> dict[str, int]:
        """The appservice's users, and up to where nobody who owns them now was given anything.

        Who shares a user and came earlier was given what came since, long forgotten maybe.
        """
        found = {}
        for user_id in user_ids:
            of = self._owners.of(user_id)
            if self._appservice_id in of:
                found[user_id] = min(bounds.get(owner, 0) for owner in of)
        return found

    async def _append(self, conn: Connection, keys: list[InboxKey]) -> None:
        appended = await inbox.append(conn, keys)
        key = ledger.LedgerKey(self._appservice_id, "to_device", LedgerOutcome.BACKFILLED)
        await ledger.count(conn, {key: appended})
        await notifications.wake_intake(conn)

    async def _put_down(self, by: Author, outcome: str) -> None:
        async with self._database.transaction() as conn:
            await admin_audit.write(
                conn, by, ACTION, appservice_id=self._appservice_id, outcome=outcome
            )
