"""Synapse's own tables in the same database: read, and given our triggers, never altered else."""

import asyncio
from typing import Final

import asyncpg

from appservice_bridge.blueprint import capture
from appservice_bridge.blueprint.files import capture_functions
from appservice_bridge.blueprint.seeding import USERS_PAGE
from appservice_bridge.blueprint.versions import SCHEMA_EXISTS
from appservice_bridge.domain.capture import CAPTURED, Trigger
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.storage import inbox, leases
from appservice_bridge.storage.database import (
    Connection,
    SourceUnreadableError,
    reading_synapse,
)

CATCH_UP_BATCH: Final = 1000

IS_SYNAPSE: Final = """
-- synapse.is_synapse
select to_regclass('public.device_inbox') is not null
   and to_regclass('public.users') is not null
"""

OTHER_SERVER_NAME: Final = """
-- synapse.other_server_name: of which server the users are, where none is of $1
select substr(name, strpos(name, ':') + 1) from public.users
 where name like '@%:%'
   and not exists (select from public.users where substr(name, strpos(name, ':') + 1) = $1)
 limit 1
"""

DROP_SCHEMA: Final = """
-- synapse.drop_schema
drop schema appservice_bridge cascade
"""

WAITING: Final = """
-- synapse.waiting: facts not yet delivered, counted cheaply: the homeserver may wait meanwhile
select (select count(*) from (select from appservice_bridge.capture_log limit 100000) c)
     + (select coalesce(sum(h.position - l.acked_to), 0)
          from appservice_bridge.outbox_head h join appservice_bridge.lane l using (appservice_id))
"""

REFUSE_WAITING: Final = f"""
-- synapse.refuse_waiting: what came in since they were counted
do $$
begin
    if ({WAITING}) > 0 then
        raise exception 'facts wait';
    end if;
end
$$
"""

SCHEMA_OWNER: Final = """
-- synapse.schema_owner: null where this role may do what the owner may
select quote_ident(pg_get_userbyid(nspowner)) from pg_namespace
 where nspname = 'appservice_bridge' and not pg_has_role(nspowner, 'USAGE')
"""


class NotSynapseError(BridgeError):
    """The database holds no Synapse."""

    def __init__(self) -> None:
        super().__init__(
            "this database has no tables of Synapse",
            mend="point `database` at Synapse's own database, and start Synapse once so that it "
            "makes them",
        )


class OtherServerNameError(BridgeError):
    """The config names another server than the users are of: nobody would be owned."""

    def __init__(self, configured: str, found: str) -> None:
        super().__init__(
            f"homeserver.server_name is {configured}, and the users in this database are of"
            f" {found}",
            mend=f"set `homeserver.server_name: {found}` in the config",
        )


class TableBusyError(BridgeError):
    """A table of the homeserver stayed locked; run the command again."""

    def __init__(self, tables: str) -> None:
        super().__init__(
            f"{tables} stayed locked by other DB transactions, and the homeserver is not made to "
            "wait: run the command again"
        )


class NotOwnerError(BridgeError):
    """Another role made the bridge's tables, and only that one may remove them."""

    def __init__(self, owner: str) -> None:
        super().__init__(
            f"schema appservice_bridge belongs to role {owner}: uninstall with a `database` that "
            "connects as that role"
        )
        self.owner = owner


class WorkerRunsError(BridgeError):
    """A worker uses the tables that are to be removed."""

    def __init__(self, name: str) -> None:
        super().__init__(f"worker {name} is running: stop `appservice-bridge run` first")


class FactsWaitError(BridgeError):
    """Facts are not delivered yet; uninstalling would lose them."""

    def __init__(self, waiting: int) -> None:
        super().__init__(
            f"{waiting} facts are not delivered yet: let `appservice-bridge run` deliver them, or "
            "give them up with --discard-backlog"
        )
        self.waiting = waiting


async def require_synapse(conn: Connection) -> None:
    """Refuse a database without Synapse's tables.

    Raises:
        NotSynapseError: as it says.
    """
    if not await conn.fetchval(IS_SYNAPSE):
        raise NotSynapseError


async def other_server_name(conn: Connection, server_name: str) -> str | None:
    """The server that the users are of, if none is of `server_name`; None also without users."""
    found: str | None = await conn.fetchval(OTHER_SERVER_NAME, server_name)
    return found


async def require_server_name(conn: Connection, server_name: str) -> None:
    """Refuse to read another server's tables; where nobody knows whose they are, let them pass.

    Outside of a DB transaction.

    Raises:
        OtherServerNameError: as it says.
    """
    try:
        with reading_synapse():
            found = await other_server_name(conn, server_name)
    except SourceUnreadableError:
        return  # the drift guard and `doctor` say which right it is
    if found is not None:
        raise OtherServerNameError(server_name, found)


async def require_homeserver(conn: Connection, server_name: str) -> None:
    """Refuse to read what is not Synapse's, or another server's. Outside of a DB transaction.

    Raises:
        NotSynapseError, OtherServerNameError: as they say.
    """
    await require_synapse(conn)
    await require_server_name(conn, server_name)


async def users_page(conn: Connection, *, after: str, size: int) -> list[str]:
    """The next so many of the homeserver's users, ascending."""
    return [row["name"] for row in await conn.fetch(USERS_PAGE, after, size)]


async def install(conn: Connection) -> list[str]:
    """Create or replace the functions, and the triggers that are missing or disabled.

    Returns the tables that got a trigger. Each has a DB transaction of its own, so that no writer
    waits behind more than one lock; a stop in between leaves triggers that work, and the next run
    makes the others.

    Raises:
        TableBusyError: no moment without a writer was found; run it again.
    """
    if capture.any_disabled(await _present(conn)):
        await _in_a_quiet_moment(conn, capture.mend(), "a table with a disabled trigger")
    await conn.execute(capture_functions())
    needed = await missing_triggers(conn)
    tables = sorted({trigger.table for trigger in needed})
    if "device_inbox" in tables:
        await _catch_up(conn)
    for table in tables:
        create = capture.attach(table, (one for one in needed if one.table == table))
        await _in_a_quiet_moment(conn, create, table)
    return tables


async def _catch_up(conn: Connection) -> None:
    """Append what came while there was no trigger, all but the last of it behind no lock."""
    appended: int | None = CATCH_UP_BATCH
    while appended is not None and appended >= CATCH_UP_BATCH:
        async with conn.transaction():
            appended = await inbox.poll(conn, limit=CATCH_UP_BATCH, wait=True)


async def _present(conn: Connection) -> list[tuple[str, str, bool]]:
    """Triggers of ours by table and name, and whether they fire."""
    return [tuple(row) for row in await conn.fetch(capture.PRESENT)]


async def missing_triggers(conn: Connection) -> list[Trigger]:
    """The triggers that are not there, or disabled."""
    return capture.missing(await _present(conn))


async def is_installed(conn: Connection) -> bool:
    """Whether every trigger is there and enabled."""
    return not await missing_triggers(conn)


async def uninstall(conn: Connection, *, discard_backlog: bool, everything: bool) -> None:
    """Remove the capture; with `everything` the bridge's schema, too.

    The facts are counted again behind the locks that removing takes, so that none slips in
    between. A stop before the schema is dropped leaves it without the capture; the next run
    drops it.

    Raises:
        NotOwnerError: another role made it.
        WorkerRunsError: a worker still uses the schema that is to go.
        FactsWaitError: facts are not delivered, and they are not to be discarded.
        TableBusyError: no moment without a writer was found; nothing was changed.
    """
    if owner := await conn.fetchval(SCHEMA_OWNER):
        raise NotOwnerError(owner)
    if not await conn.fetchval(SCHEMA_EXISTS):
        return
    if everything and (names := await leases.live_workers(conn)):
        raise WorkerRunsError(names[0])
    if not discard_backlog:
        await _require_delivered(conn)
    detach = capture.detach(refuse="" if discard_backlog else REFUSE_WAITING)
    try:
        await _in_a_quiet_moment(conn, detach, ", ".join(CAPTURED))
    except asyncpg.RaiseError:  # one came in meanwhile, and the capture is still there
        await _require_delivered(conn)
        raise FactsWaitError(1) from None
    if everything:
        await conn.execute(DROP_SCHEMA)


async def _require_delivered(conn: Connection) -> None:
    if waiting := await conn.fetchval(WAITING):
        raise FactsWaitError(waiting)


async def _in_a_quiet_moment(conn: Connection, change: str, tables: str) -> None:
    """Run DDL without ever making the homeserver wait behind us for more than 100 ms."""
    for tries in range(capture.TRIES):
        try:
            await conn.execute(change)
        except asyncpg.PostgresError as error:
            if error.sqlstate not in capture.BUSY:
                raise
            await asyncio.sleep(capture.rest_seconds(tries))
        else:
            return
    raise TableBusyError(tables)
