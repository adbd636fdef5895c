"""`registration remove`: everything that is kept of an appservice that is registered no longer."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Final

import structlog
import typer

from appservice_bridge.cli.check import ConfigOption
from appservice_bridge.cli.context import author, finished, loaded
from appservice_bridge.cli.embedded import reachable
from appservice_bridge.config.loading import Loaded
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.nearest import hint
from appservice_bridge.storage import admin_audit, migrations, registrations, removal
from appservice_bridge.storage.database import Connection, Database
from appservice_bridge.storage.removal import Left
from appservice_bridge.telemetry import logs

log = structlog.get_logger(__name__)

BATCH: Final = 5000


class NotRemovedError(BridgeError):
    """The appservice stays as it is; the message says what to do first."""

    def __init__(self, appservice_id: str, reason: str) -> None:
        super().__init__(f"{appservice_id} is not removed: {reason}")


def remove(
    appservice_id: Annotated[
        str, typer.Argument(metavar="ID", help="The appservice's id, as its registration said.")
    ],
    config: ConfigOption,
    discard_backlog: Annotated[
        bool, typer.Option("--discard-backlog", help="Also lose what waits, and dead letters.")
    ] = False,
) -> None:
    """Forget an appservice whose registration was taken away, and all that is kept of it."""
    logs.configure()
    of = loaded(config)
    gone = finished(_remove(of, appservice_id, discard_backlog=discard_backlog))
    typer.echo(f"{appservice_id} is removed" + ("" if gone.nothing else f"; lost: {told(gone)}"))


def told(left: Left) -> str:
    """What waits or lies there, in words."""
    counts = {
        "items": left.items,
        "transactions": left.transactions,
        "device updates": left.device_updates,
        "dead letters": left.dead_letters,
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


async def _remove(of: Loaded, appservice_id: str, *, discard_backlog: bool) -> Left:
    """Dying in between leaves nothing that would be sent; run it again to forget the rest."""
    if any(one.id == appservice_id for one in of.registrations):
        reason = "its registration is among those of the config; take it away first"
        raise NotRemovedError(appservice_id, reason)
    with reachable(of) as dsn:
        async with Database.open(dsn, max_connections=1) as database:
            async with database.transaction() as conn:
                await migrations.require_current(conn)
                gone = await _discarded(conn, appservice_id, discard_backlog=discard_backlog)
                outcome = f"lost: {told(gone)}" if told(gone) else "nothing was lost"
                await admin_audit.write(
                    conn, author(), "remove", appservice_id=appservice_id, outcome=outcome
                )
            await _forget(database, appservice_id)
    log.info("appservice.removed", appservice=appservice_id, items=gone.items)
    return gone


async def _discarded(conn: Connection, appservice_id: str, *, discard_backlog: bool) -> Left:
    """Let nothing wait for it; what did.

    Raises:
        NotRemovedError: nothing was done.
    """
    await registrations.wait_for_gate(conn)
    known = await removal.known(conn)
    if appservice_id not in known:
        reason = f"nothing is known of it; {hint(appservice_id, known)}"
        raise NotRemovedError(appservice_id, reason)
    await _require_unused(conn, appservice_id)
    left = await removal.left(conn, appservice_id)
    if not left.nothing and not discard_backlog:
        reason = f"{told(left)} would be lost; --discard-backlog loses them"
        raise NotRemovedError(appservice_id, reason)
    await removal.discard(conn, appservice_id)
    return left


async def _require_unused(conn: Connection, appservice_id: str) -> None:
    if await removal.in_use(conn, appservice_id):
        reason = "a worker that runs still has its registration; let it reload first"
        raise NotRemovedError(appservice_id, reason)


async def _forget(database: Database, appservice_id: str) -> None:
    """Nothing that came after a return of its registration is touched.

    Raises:
        NotRemovedError: it came back; what was discarded is gone.
    """
    await _all_batches(partial(_forget_discarded, database, appservice_id))
    for step in range(removal.STEPS):
        await _all_batches(partial(_forget_batch, database, step, appservice_id))
    async with database.transaction() as conn:
        await _require_gone(conn, appservice_id)
        await removal.forget_rest(conn, appservice_id)


async def _all_batches(forget: Callable[[], Awaitable[int]]) -> None:
    while await forget() == BATCH:
        pass


async def _forget_discarded(database: Database, appservice_id: str) -> int:
    async with database.transaction() as conn:
        return await removal.forget_discarded(conn, appservice_id, size=BATCH)


async def _forget_batch(database: Database, step: int, appservice_id: str) -> int:
    async with database.transaction() as conn:
        await _require_gone(conn, appservice_id)
        return await removal.forget_batch(conn, step, appservice_id, size=BATCH)


async def _require_gone(conn: Connection, appservice_id: str) -> None:
    """Hold the gate, so that it cannot come back before the DB transaction ends."""
    await registrations.wait_for_gate(conn)
    if await removal.returned(conn, appservice_id):
        reason = "its registration has come back meanwhile; what had waited for it is discarded"
        raise NotRemovedError(appservice_id, reason)
