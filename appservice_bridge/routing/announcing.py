"""Brings a set of registrations to life: from then on every fact of their users is captured."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import structlog

from appservice_bridge.domain.owners import Owners
from appservice_bridge.storage import foreign_users, membership_stream, registrations, seeding
from appservice_bridge.storage.database import Connection, Database

log = structlog.get_logger(__name__)

PAGE: Final = 10_000
LONGEST_DB_TRANSACTION_SECONDS: Final = 60.0


class PageOfUsers(Protocol):
    """Reads user ids in ascending order, so many after a given one."""

    def __call__(self, conn: Connection, *, after: str, size: int) -> Awaitable[list[str]]:
        """At most `size` ids above `after`."""


class Present(Protocol):
    """Reads up to where the homeserver's stream of to-device messages is written by now."""

    def __call__(self, conn: Connection, /) -> Awaitable[int | None]:
        """The position; None where it cannot be known."""


async def announce(
    database: Database, owners: Owners, *, epoch: str, present: Present | None = None
) -> list[str]:
    """Make these the registrations that intake routes by; returns those that are not live yet.

    Users the triggers leave out so far are taken off their list. What comes for them after
    `present` is captured; it is noted, and read first, so that what is older can be told. Dying
    before the commit changes nothing; after it, the next start finds the same appservices not live.
    """
    async with database.transaction() as conn:
        position = None if present is None else await present(conn)
        await registrations.attach(conn, list(owners.registrations), present=position)
        await registrations.set_digest(conn, owners.digest())
        waiting = await _announce_changed(conn, owners, epoch)
        if waiting:
            await _each_page(conn, foreign_users.page, owners, foreign_users.remove, owned=True)
    return waiting


async def go_live(
    database: Database,
    appservice_ids: Sequence[str],
    *,
    tell_all: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Outlive every DB transaction that may still see the old list; from then on all is captured.

    Until then an appservice gets what is captured, as everyone does. `tell_all` lets it hear of
    everything there is of devices, when no change of it is left out any more.
    """
    if not appservice_ids:
        return
    await outlive_open_db_transactions(database)
    if tell_all is not None:
        await tell_all()
    async with database.transaction() as conn:
        live = await registrations.go_live(conn, appservice_ids)
    for appservice_id in live:
        log.info("appservice.live", appservice=appservice_id)


async def seed_foreign(conn: Connection, owners: Owners, users_page: PageOfUsers) -> int:
    """Put the homeserver's users that nobody owns on the list of the foreign; returns how many."""
    return await _each_page(conn, users_page, owners, foreign_users.add, owned=False)


async def _announce_changed(conn: Connection, owners: Owners, epoch: str) -> list[str]:
    withdrawn = await registrations.withdraw_others(conn, list(owners.registrations))
    known = await registrations.announced(conn)
    changed = [
        appservice_id
        for appservice_id in owners.registrations
        if known.get(appservice_id) != (owners.namespaces_digest(appservice_id), True)
    ]
    for appservice_id in changed:
        digest = owners.namespaces_digest(appservice_id)
        await registrations.announce(conn, appservice_id, digest, epoch=epoch)
    silent = withdrawn + [one for one in changed if one not in owners.encrypted]
    if silent:
        await membership_stream.wait_for_cursor(conn)  # who follows may still do so for them
        await seeding.forget(conn, silent)
    return changed


async def _each_page(
    conn: Connection,
    read: PageOfUsers,
    owners: Owners,
    write: Callable[[Connection, list[str]], Awaitable[None]],
    *,
    owned: bool,
) -> int:
    """Write those users of each page who are, or are not, owned; returns how many."""
    after, written = "", 0
    while page := await read(conn, after=after, size=PAGE):
        chosen = [user_id for user_id in page if bool(owners.of(user_id)) is owned]
        if chosen:
            await write(conn, chosen)
        after, written = page[-1], written + len(chosen)
    return written


async def outlive_open_db_transactions(database: Database) -> None:
    """Wait until no DB transaction is left that may have begun before what was just committed.

    For a minute at most; the triggers of one that lasts longer go by what was told before.
    """
    async with database.transaction() as conn:
        left = await registrations.open_db_transactions(conn)
    try:
        async with asyncio.timeout(LONGEST_DB_TRANSACTION_SECONDS):
            while left:
                await asyncio.sleep(0.05)
                async with database.transaction() as conn:
                    left &= await registrations.open_db_transactions(conn)
    except TimeoutError:
        log.warning("old_db_transactions.left", left=len(left))
