"""First contact, and again on demand: everything an appservice must know of devices."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.owners import Owners
from appservice_bridge.domain.progress import Tell, nobody
from appservice_bridge.routing.following import foreign_to
from appservice_bridge.storage import (
    capture_log,
    device_updates,
    membership_stream,
    notifications,
    seeding,
    synapse,
    tracking,
)
from appservice_bridge.storage.database import Connection, Database
from appservice_bridge.storage.device_updates import ListKey
from appservice_bridge.storage.tracking import Occupied

PAGE: Final = 5000  # of users
PAGE_OF_ROOMS: Final = 20  # each may have a hundred thousand members

Owned = Mapping[str, Sequence[str]]


class OtherRegistrationsError(BridgeError):
    """The worker that started last has other registrations; whoever has those must do it."""

    def __init__(self) -> None:
        super().__init__(
            "the worker that started last has other registrations than this config, or none "
            "has started yet: start one with this config first"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeded:
    """What will be told: users that `changed`, users that `left`, devices with their keys."""

    changed: int = 0
    left: int = 0
    devices: int = 0


class Seeding:
    """Brings what is kept for some appservices to what the homeserver holds now.

    It is done in several DB transactions, so that intake never waits long for one of its rows.
    Each holds the cursor, so that nobody follows meanwhile; and the next to come finds what holds
    then. Dying between two leaves some told and others not: it must be done again from the start,
    which at a start of a worker it is, for the appservices are not live before it is done.
    """

    def __init__(
        self,
        database: Database,
        owners: Owners,
        appservice_ids: Sequence[str],
        tell: Tell = nobody,
    ) -> None:
        self._database = database
        self._owners = owners
        self._chosen = [id_ for id_ in appservice_ids if id_ in owners.encrypted]
        self._tell = tell
        self._looked_at = 0  # users and rooms; some of them twice

    async def run(self) -> Seeded:
        """Do it all.

        Raises:
            DatabaseUnavailableError: some of it may be done; do it again.
            OtherRegistrationsError: as it says.
            SourceUnreadableError: Synapse's tables are not as they were.
        """
        await self._begin()
        for appservice_id in self._chosen:
            await self._track_members(appservice_id)
        told = [await self._tell_users(appservice_id) for appservice_id in self._chosen]
        devices = await self._tell_devices()
        return Seeded(
            changed=sum(changed for changed, _ in told),
            left=sum(left for _, left in told),
            devices=devices,
        )

    async def _begin(self) -> None:
        """Find out where the users are; what changes after this, the follower sees."""
        async with self._held() as conn:
            await seeding.clear_residents(conn, self._chosen)
            async for owned in self._pages_of_owned(conn):
                await seeding.add_residents(conn, owned)

    async def _track_members(self, appservice_id: str) -> None:
        after, done = "", False
        while not done:
            async with self._held() as conn:
                rooms = await seeding.rooms_page(
                    conn, appservice_id, after=after, size=PAGE_OF_ROOMS
                )
                occupied = [Occupied(appservice_id, room_id) for room_id in rooms]
                new = await tracking.members(conn, occupied, tracked=False)
                await tracking.track(conn, foreign_to(self._owners, new))
            self._went_through(rooms)
            after, done = (rooms or [after])[-1], len(rooms) < PAGE_OF_ROOMS

    async def _tell_users(self, appservice_id: str) -> tuple[int, int]:
        """How many `changed`, and how many `left`."""
        after, done, changed, left = "", False, 0, 0
        while not done:
            async with self._held() as conn:
                users = await seeding.tracked_page(conn, appservice_id, after=after, size=PAGE)
                changes = await self._changes(conn, appservice_id, users)
                if changes:
                    await device_updates.change_lists(conn, changes)
                    await notifications.notify(conn, notifications.OUTBOX)
            self._went_through(users)
            after, done = (users or [after])[-1], len(users) < PAGE
            gone = sum(change == "left" for change in changes.values())
            changed, left = changed + len(changes) - gone, left + gone
        return changed, left

    async def _changes(
        self, conn: Connection, appservice_id: str, users: Sequence[str]
    ) -> dict[ListKey, str]:
        own = [user_id for user_id in users if appservice_id in self._owners.of(user_id)]
        if own:
            await seeding.forget_tracked(conn, appservice_id, own)
        others = [ListKey(appservice_id, user_id) for user_id in sorted(set(users) - set(own))]
        left = await tracking.untrack(conn, others)
        changes: dict[ListKey, str] = dict.fromkeys(others, "changed")
        return changes | dict.fromkeys(left, "left")

    async def _tell_devices(self) -> int:
        devices, after, done = 0, "", False
        while not done:
            async with self._held() as conn:
                page = await synapse.users_page(conn, after=after, size=PAGE)
                devices += await seeding.mark_devices(conn, self._owned(page, after))
                await notifications.notify(conn, notifications.OUTBOX)
            self._went_through(page)
            after, done = (page or [after])[-1], len(page) < PAGE
        return devices

    def _went_through(self, page: Sequence[str]) -> None:
        self._looked_at += len(page)
        self._tell(self._looked_at, None)

    async def _pages_of_owned(self, conn: Connection) -> AsyncIterator[Owned]:
        after, done = "", not self._chosen
        while not done:
            page = await synapse.users_page(conn, after=after, size=PAGE)
            yield self._owned(page, after)
            after, done = (page or [after])[-1], len(page) < PAGE

    def _owned(self, page: Sequence[str], after: str) -> Owned:
        """By appservice, who of a page is its own; the first page has the senders, too.

        A sender need not be among the homeserver's users.
        """
        owned = {
            id_: {user_id for user_id in page if id_ in self._owners.of(user_id)}
            for id_ in self._chosen
        }
        if not after:
            for id_, registration in self._owners.registrations.items():
                if id_ in owned:
                    owned[id_].add(registration.sender(server_name=self._owners.server_name))
        return {id_: sorted(user_ids) for id_, user_ids in owned.items()}

    @asynccontextmanager
    async def _held(self) -> AsyncIterator[Connection]:
        """A DB transaction in which nobody follows, and these registrations are the ones."""
        async with self._database.beside_synapse() as conn:
            held = await membership_stream.wait_for_cursor(conn)
            if not held or not await capture_log.same_registrations(conn, self._owners.digest()):
                raise OtherRegistrationsError
            yield conn
