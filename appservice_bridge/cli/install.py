"""`install` and `uninstall`: the capture in Synapse's database."""

from functools import partial
from typing import Annotated

import typer

from appservice_bridge.blueprint import seeding
from appservice_bridge.cli.check import ConfigOption
from appservice_bridge.cli.context import author, finished, loaded, owners, with_connection
from appservice_bridge.cli.synapse_side import cleaned
from appservice_bridge.config.loading import Loaded
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.routing.announcing import seed_foreign
from appservice_bridge.storage import (
    admin_audit,
    device_streams,
    grants,
    inbox,
    inbox_deletions,
    key_changes,
    migrations,
    registrations,
    synapse,
)
from appservice_bridge.storage.database import Connection


class NothingToCaptureError(BridgeError):
    """The homeserver is none whose database is read."""

    def __init__(self) -> None:
        super().__init__(
            "homeserver.kind is generic: there is nothing to install or uninstall; its facts come "
            "in through the relay and by ingest"
        )


class GrantsLeftError(BridgeError):
    """The capture is gone, but what the owner of the database granted is not; it must revoke it."""

    def __init__(self, count: int) -> None:
        super().__init__(
            f"{count} grants are left: the owner of the homeserver's database must run the REVOKEs "
            "above; then run this command again"
        )


def install(
    config: ConfigOption,
    print_grants: Annotated[
        bool,
        typer.Option(
            "--print-grants", help="Only print what the owner of the database must grant."
        ),
    ] = False,
) -> None:
    """Put the capture into Synapse's database; run it again at any time."""
    of = loaded(config)
    if of.config.homeserver.kind != "synapse":
        finished(_refuse())
    if print_grants:
        print("\n".join(finished(with_connection(of, partial(_needed_grants, of)))))
        return

    async def work(conn: Connection) -> str:
        return await _install(conn, of)

    print(finished(with_connection(of, work)))


def uninstall(
    config: ConfigOption,
    discard_backlog: Annotated[
        bool, typer.Option("--discard-backlog", help="Give up facts that are not delivered.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Remove the bridge's own tables, too.")
    ] = False,
) -> None:
    """Remove the capture from Synapse's database; refused while facts wait.

    Ends 1 while the role holds grants that only the owner of the database can revoke.
    """
    of = loaded(config)
    if of.config.homeserver.kind != "synapse":
        finished(_refuse())

    async def work(conn: Connection) -> list[str]:
        await synapse.uninstall(conn, discard_backlog=discard_backlog, everything=everything)
        if not everything and not await migrations.pending(conn):
            await admin_audit.write(conn, author(), "uninstall", outcome="the capture is gone")
        return await grants.revokes(conn)

    revokes = finished(with_connection(of, work))
    print("nothing of the capture is left" + (", nor of the bridge's tables" if everything else ""))
    if revokes:
        print("\n".join(revokes))
        finished(_grants_left(len(revokes)))


async def _refuse() -> None:
    raise NothingToCaptureError


async def _grants_left(count: int) -> None:
    raise GrantsLeftError(count)


async def _needed_grants(of: Loaded, conn: Connection) -> list[str]:
    triggers = of.config.homeserver.capture != "polling"
    needed = await grants.rights(conn, triggers=triggers, cleaning=bool(cleaned(of)), polling=True)
    return await grants.grants(conn, needed)


async def _install(conn: Connection, of: Loaded) -> str:
    await migrations.require_current(conn)
    await synapse.require_synapse(conn)
    if of.config.homeserver.capture == "polling":
        return await _prepare_polling(conn, deleting=_told_to_delete(of))
    await grants.require_rights(conn, deleting=_told_to_delete(of))
    known = owners(of)
    async with conn.transaction():
        # the gate is held, so that nobody becomes owned while they are put down as foreign
        await registrations.wait_for_gate(conn)
        await registrations.look_again(conn, known.digest())
        foreign = await seed_foreign(conn, known, synapse.users_page)
        await admin_audit.write(conn, author(), "install", outcome="begun")
    created = await synapse.install(conn)
    await admin_audit.write(conn, author(), "install", subjects=created, outcome="triggers made")
    what = (
        f"triggers made on {', '.join(created)}"
        if created
        else "the triggers were there already, their functions are this release's"
    )
    return f"capture: {what}; {seeding.told(foreign)}"


def _told_to_delete(of: Loaded) -> bool:
    told_to = {id_ for id_, one in of.config.appservices.items() if one.delete_delivered == "on"}
    return bool(told_to & cleaned(of))


async def _prepare_polling(conn: Connection, *, deleting: bool) -> str:
    """Nothing is made in Synapse's tables; what comes from now on is read."""
    await grants.require_rights(conn, deleting=deleting, triggers=False)
    for source in (inbox, device_streams, key_changes, inbox_deletions):
        await source.set_floor(conn)
    return "capture: polling, no trigger made; what comes from now on is read"
