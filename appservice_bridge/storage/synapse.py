"""Synapse's own tables in the same database: read, and given our triggers, never altered else."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import asyncpg

from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.storage import inbox, migrations
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.migrations import schema_directory

TRIES: Final = 100  # of 100 ms each, with rests of 100 ms between: about 20 s at worst

RIGHTS: Final = """
-- synapse.rights: which rights this role has, by the statement that would give it
select needed.*,
       case needed.kind
            when 'database' then has_database_privilege(current_database(), needed.privilege)
            when 'schema' then has_schema_privilege(needed.name, needed.privilege)
            else coalesce(has_table_privilege(to_regclass(needed.name), needed.privilege), false)
       end as held
  from (values ('database', current_database()::text, 'CREATE'),
               ('schema', 'public', 'USAGE'),
               ('table', 'public.users', 'SELECT'),
               ('table', 'public.stream_positions', 'SELECT'),
               ('table', 'public.device_inbox', 'TRIGGER'),
               ('table', 'public.device_inbox', 'SELECT')) as needed(kind, name, privilege)
"""

IS_SYNAPSE: Final = """
-- synapse.is_synapse
select to_regclass('public.device_inbox') is not null
   and to_regclass('public.users') is not null
"""

USERS_PAGE: Final = """
-- synapse.users_page
select name from public.users where name > $1 order by name limit $2
"""

TRIGGER_THERE: Final = """
-- synapse.trigger_there
select exists (select from pg_trigger
                where tgrelid = to_regclass('public.device_inbox')
                  and tgname = 'appservice_bridge_capture'
                  and tgenabled <> 'D')
"""

CREATE_TRIGGER: Final = """
-- synapse.create_trigger
create trigger appservice_bridge_capture after insert on public.device_inbox
referencing new table as inserted
for each statement execute function appservice_bridge.capture_device_inbox()
"""

DROP_FUNCTION: Final = """
-- synapse.drop_function: takes the trigger with it, also where the table is not ours
drop function if exists appservice_bridge.capture_device_inbox() cascade
"""

DROP_SCHEMA: Final = """
-- synapse.drop_schema
drop schema appservice_bridge cascade
"""

WAITING: Final = """
-- synapse.waiting: facts not yet delivered, counted cheaply, for the homeserver waits meanwhile
select (select count(*) from (select from appservice_bridge.capture_log limit 100000) c)
     + (select coalesce(sum(h.position - l.acked_to), 0)
          from appservice_bridge.outbox_head h join appservice_bridge.lane l using (appservice_id))
"""

RUNNING_WORKER: Final = """
-- synapse.running_worker
select name from appservice_bridge.worker where alive_until > clock_timestamp() limit 1
"""

QUOTED_ROLE: Final = """
-- synapse.quoted_role
select quote_ident(current_user), quote_ident(current_database())
"""


class NotSynapseError(BridgeError):
    """The database holds no Synapse."""

    def __init__(self) -> None:
        super().__init__(
            "this database has no tables of Synapse: point `database` at Synapse's own database, "
            "and start Synapse once so that it makes them"
        )


class GrantsMissingError(BridgeError):
    """The role lacks rights; the owner of the database must give them."""

    def __init__(self, statements: list[str]) -> None:
        lines = "".join(f"\n  {statement}" for statement in statements)
        super().__init__(f"the owner of the homeserver's database must run first:{lines}")
        self.statements = statements


class TableBusyError(BridgeError):
    """The homeserver's table stayed locked; nothing was changed, run the command again."""

    def __init__(self) -> None:
        super().__init__(
            "public.device_inbox stayed locked by the homeserver's transactions; nothing was "
            "changed, run the command again"
        )


class CaptureMissingError(BridgeError):
    """The triggers are not there, or disabled: to-device messages would be lost silently."""

    def __init__(self) -> None:
        super().__init__(
            "the capture is not installed, so no to-device message would be delivered: run "
            "`appservice-bridge install`, or set homeserver.capture to none"
        )


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Right:
    """A right that the capture needs.

    Attributes:
        kind: database, schema or table.
        held: whether this role has it.
    """

    kind: str
    name: str
    privilege: str
    held: bool


async def require_synapse(conn: Connection) -> None:
    """Refuse a database without Synapse's tables.

    Raises:
        NotSynapseError: as it says.
    """
    if not await conn.fetchval(IS_SYNAPSE):
        raise NotSynapseError


async def rights(conn: Connection) -> list[Right]:
    """The rights that the capture needs, and whether they are held."""
    return [Right(**row) for row in await conn.fetch(RIGHTS)]


async def grants(conn: Connection, *, revoke: bool = False, missing: bool = False) -> list[str]:
    """Statements for the owner of the homeserver's database: GRANTs, or the REVOKEs of them."""
    role, database = await conn.fetchrow(QUOTED_ROLE) or ("", "")
    verb, to = ("REVOKE", "FROM") if revoke else ("GRANT", "TO")
    statements = []
    for right in await rights(conn):
        if missing and right.held:
            continue
        name = database if right.kind == "database" else right.name
        statements.append(f"{verb} {right.privilege} ON {right.kind.upper()} {name} {to} {role};")
    return statements


async def require_rights(conn: Connection) -> None:
    """Refuse a role that could not install the capture.

    Raises:
        GrantsMissingError: with the statements that give the rights.
    """
    if lacking := await grants(conn, missing=True):
        raise GrantsMissingError(lacking)


async def users_page(conn: Connection, *, after: str, size: int) -> list[str]:
    """The next so many of the homeserver's users, ascending."""
    return [row["name"] for row in await conn.fetch(USERS_PAGE, after, size)]


async def install(conn: Connection) -> bool:
    """Create or replace the function, and the trigger if it is missing or disabled.

    Returns False if the trigger was there.

    Raises:
        TableBusyError: no moment without a writer was found; nothing was changed.
    """
    function = (schema_directory() / "synapse" / "capture.sql").read_text(encoding="utf-8")
    if await conn.fetchval(TRIGGER_THERE):
        await conn.execute(function)
        return False

    async def create() -> None:
        await conn.execute(DROP_FUNCTION)  # and with it a trigger that is disabled
        await conn.execute(function)
        # creating it waited for every writer: what is in the table now is the past
        await conn.execute(CREATE_TRIGGER)
        await conn.execute(inbox.SET_FLOOR)

    await _in_a_quiet_moment(conn, create)
    return True


async def is_installed(conn: Connection) -> bool:
    """Whether the trigger is there and enabled."""
    return bool(await conn.fetchval(TRIGGER_THERE))


async def require_installed(conn: Connection) -> None:
    """Refuse to run where nothing is captured.

    Raises:
        NotSynapseError, CaptureMissingError: as they say.
    """
    await require_synapse(conn)
    if not await is_installed(conn):
        raise CaptureMissingError


async def uninstall(conn: Connection, *, discard_backlog: bool, everything: bool) -> None:
    """Remove the capture; with `everything` the bridge's schema, too.

    The facts are counted behind the lock that removing takes, so that none slips in between.

    Raises:
        WorkerRunsError: a worker still uses the schema that is to go.
        FactsWaitError: facts are not delivered, and they are not to be discarded.
        TableBusyError: no moment without a writer was found; nothing was changed.
    """
    if not await conn.fetchval(migrations.SCHEMA_EXISTS):
        return
    if everything and (name := await conn.fetchval(RUNNING_WORKER)):
        raise WorkerRunsError(name)

    async def remove() -> None:
        await conn.execute(DROP_FUNCTION)
        waiting = await conn.fetchval(WAITING)
        if waiting and not discard_backlog:
            raise FactsWaitError(waiting)
        await conn.execute(inbox.FORGET_FLOOR)
        if everything:
            await conn.execute(DROP_SCHEMA)

    await _in_a_quiet_moment(conn, remove)


async def _in_a_quiet_moment(conn: Connection, change: Callable[[], Awaitable[None]]) -> None:
    """Run DDL without ever making the homeserver wait behind us for more than 100 ms."""
    for _ in range(TRIES):
        try:
            async with conn.transaction():
                await conn.execute("set local lock_timeout = '100ms'")
                await change()
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            await asyncio.sleep(0.1)
        else:
            return
    raise TableBusyError
