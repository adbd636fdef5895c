"""`backfill`: deliver what the homeserver's inbox still holds from before the bridge."""

from collections.abc import AsyncIterator
from typing import Annotated, Final

import typer

from appservice_bridge.cli.appservice_ids import AppserviceArgument
from appservice_bridge.cli.check import ConfigOption
from appservice_bridge.cli.context import finished, loaded, owners, with_connection
from appservice_bridge.config.loading import Loaded
from appservice_bridge.delivery.operating import UnknownAppserviceError
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.domain.owners import Owners
from appservice_bridge.storage import backfill as inbox
from appservice_bridge.storage import (
    capture_log,
    ledger,
    migrations,
    notifications,
    registrations,
    synapse,
)
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.repeats import InboxKey

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


def backfill(
    config: ConfigOption,
    appservice_id: AppserviceArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how many messages that would be.")
    ] = False,
) -> None:
    """Deliver what the inbox holds of an appservice's users from before it was attached.

    A message goes to every appservice that owns its user, as always, and behind all that waits.
    Those that were routed before are left out, and so are those of deleted devices. Works with no
    worker running, and may be stopped and run again at any time.
    """
    of = loaded(config)
    known = owners(of)

    async def work(conn: Connection) -> str:
        bounds = await _bounds(conn, of, known, appservice_id)
        devices, messages = set(), 0
        async for keys in _pages(conn, known, appservice_id, bounds, append=not dry_run):
            devices |= {key[:2] for key in keys}
            messages += len(keys)
        would = "would be" if dry_run else "will be"
        return f"{messages} messages of {len(devices)} devices {would} delivered"

    print(finished(with_connection(of, work)))


async def _bounds(
    conn: Connection, of: Loaded, known: Owners, appservice_id: str
) -> dict[str, int]:
    """Where each appservice was attached, once it is sure that a backfill can be done."""
    if of.config.homeserver.capture == "none":
        raise NoInboxError
    if appservice_id not in known.registrations:
        raise UnknownAppserviceError(appservice_id, known.registrations)
    await migrations.require_current(conn)
    await synapse.require_synapse(conn)
    bounds = await registrations.attached(conn)
    same = await capture_log.same_registrations(conn, known.digest())
    if not same or appservice_id not in bounds:
        raise NotAnnouncedError
    return bounds


async def _pages(
    conn: Connection,
    known: Owners,
    appservice_id: str,
    bounds: dict[str, int],
    *,
    append: bool,
) -> AsyncIterator[list[InboxKey]]:
    """Go through the inbox's stream; each page is one DB transaction.

    Dying in a page leaves it undone; what earlier ones appended is found in the log, or taken.
    """
    after = 0
    while True:
        async with conn.transaction():
            page = await inbox.page(conn, after=after, upto=bounds[appservice_id], size=PAGE)
            if page is None:
                return
            await inbox.hold_floor(conn)
            users = _users(page.user_ids, known, appservice_id, bounds)
            keys = await inbox.missing(conn, after=after, upto=page.upto, bounds=users)
            if append and keys:
                await _append(conn, appservice_id, keys)
        yield keys
        after = page.upto


def _users(
    user_ids: frozenset[str], known: Owners, appservice_id: str, bounds: dict[str, int]
) -> dict[str, int]:
    """The appservice's users, and up to where nobody who owns them now was given anything.

    Who shares a user and came earlier was given what came since, long forgotten maybe.
    """
    found = {}
    for user_id in user_ids:
        of = known.of(user_id)
        if appservice_id in of:
            found[user_id] = min(bounds.get(owner, 0) for owner in of)
    return found


async def _append(conn: Connection, appservice_id: str, keys: list[InboxKey]) -> None:
    appended = await inbox.append(conn, keys)
    key = ledger.LedgerKey(appservice_id, "to_device", LedgerOutcome.BACKFILLED)
    await ledger.count(conn, {key: appended})
    await notifications.wake_intake(conn)
