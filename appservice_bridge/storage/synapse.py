"""Synapse's own tables in the same database: read, and given our triggers, never altered else."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

import asyncpg

from appservice_bridge.domain.capture import FUNCTIONS, TRIGGERS, Trigger
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
               ('table', 'public.current_state_delta_stream', 'SELECT'),
               ('table', 'public.current_state_events', 'SELECT'),
               ('table', 'public.room_memberships', 'SELECT'),
               ('table', 'public.device_inbox', 'TRIGGER'),
               ('table', 'public.device_inbox', 'SELECT'),
               ('table', 'public.device_lists_stream', 'TRIGGER'),
               ('table', 'public.device_lists_stream', 'SELECT'),
               ('table', 'public.user_signature_stream', 'TRIGGER'),
               ('table', 'public.user_signature_stream', 'SELECT'),
               ('table', 'public.e2e_one_time_keys_json', 'TRIGGER'),
               ('table', 'public.e2e_one_time_keys_json', 'SELECT'),
               ('table', 'public.e2e_fallback_keys_json', 'TRIGGER'),
               ('table', 'public.e2e_fallback_keys_json', 'SELECT'),
               ('table', 'public.devices', 'TRIGGER'),
               ('table', 'public.devices', 'SELECT')) as needed(kind, name, privilege)
"""

CLEANING_RIGHTS: Final = """
-- synapse.cleaning_rights: to delete what was delivered, and to see which devices use sliding sync
select needed.*, has_table_privilege(to_regclass(needed.name), needed.privilege) as held
  from (values ('table', 'public.device_inbox', 'DELETE'),
               ('table', 'public.sliding_sync_connections', 'SELECT'))
    as needed(kind, name, privilege)
 where to_regclass(needed.name) is not null
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

MISSING_TRIGGERS: Final = """
-- synapse.missing_triggers: those of $1, $2 (name, table) that are not there or disabled
select t.place
  from unnest($1::text[], $2::text[]) with ordinality as t(name, table_name, place)
 where not exists (select from pg_trigger
                    where tgrelid = to_regclass('public.' || t.table_name)
                      and tgname = t.name and tgenabled <> 'D')
 order by t.place
"""

DISABLED: Final = """
-- synapse.disabled: functions of ours that have a disabled trigger
select array_agg(distinct p.proname::text)
  from pg_trigger t join pg_proc p on p.oid = t.tgfoid
 where p.pronamespace = to_regnamespace('appservice_bridge') and p.proname = any($1::text[])
   and t.tgenabled = 'D'
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


async def cleaning_rights(conn: Connection) -> list[Right]:
    """The rights that cleaning the inbox needs on top of it, and whether they are held."""
    return [Right(**row) for row in await conn.fetch(CLEANING_RIGHTS)]


async def grants(conn: Connection, *, cleaning: bool) -> list[str]:
    """GRANTs for the owner of the homeserver's database; with those for `cleaning` the inbox."""
    needed = await rights(conn)
    return await _statements(conn, needed + (await cleaning_rights(conn) if cleaning else []))


async def revokes(conn: Connection) -> list[str]:
    """The REVOKEs of what the bridge may have been granted."""
    granted = [right for right in await cleaning_rights(conn) if right.held]
    return await _statements(conn, await rights(conn) + granted, revoke=True)


async def _statements(conn: Connection, of: Iterable[Right], *, revoke: bool = False) -> list[str]:
    role, database = await conn.fetchrow(QUOTED_ROLE) or ("", "")
    verb, to = ("REVOKE", "FROM") if revoke else ("GRANT", "TO")
    statements = []
    for right in of:
        name = database if right.kind == "database" else right.name
        statements.append(f"{verb} {right.privilege} ON {right.kind.upper()} {name} {to} {role};")
    return statements


async def require_rights(conn: Connection, *, deleting: bool) -> None:
    """Refuse a role that could not install the capture, or not delete where it is told to.

    Raises:
        GrantsMissingError: with the statements that give the rights.
    """
    needed = await rights(conn)
    if deleting:
        needed += [one for one in await cleaning_rights(conn) if one.privilege == "DELETE"]
    if lacking := [right for right in needed if not right.held]:
        raise GrantsMissingError(await _statements(conn, lacking))


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
    functions = (schema_directory() / "synapse" / "capture.sql").read_text(encoding="utf-8")
    if disabled := await conn.fetchval(DISABLED, list(FUNCTIONS)):

        async def remove() -> None:
            await _drop_functions(conn, disabled)

        await _in_a_quiet_moment(conn, remove)
    await conn.execute(functions)
    missing = await missing_triggers(conn)
    for trigger in missing:

        async def create(trigger: Trigger = trigger) -> None:
            # it waits for every writer: what is in the table then is the past
            await conn.execute(trigger.create)
            if trigger.table == "device_inbox":
                await conn.execute(inbox.SET_FLOOR)

        await _in_a_quiet_moment(conn, create)
    return sorted({trigger.table for trigger in missing})


async def _drop_functions(conn: Connection, functions: Iterable[str]) -> None:
    """Drop functions, and with each its triggers: those may be on tables that are not ours."""
    for function in functions:
        await conn.execute(f"drop function if exists appservice_bridge.{function}() cascade")


async def missing_triggers(conn: Connection) -> list[Trigger]:
    """The triggers that are not there, or disabled."""
    names, tables = [t.name for t in TRIGGERS], [t.table for t in TRIGGERS]
    rows = await conn.fetch(MISSING_TRIGGERS, names, tables)
    return [TRIGGERS[row["place"] - 1] for row in rows]


async def is_installed(conn: Connection) -> bool:
    """Whether every trigger is there and enabled."""
    return not await missing_triggers(conn)


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
        await _drop_functions(conn, (*FUNCTIONS, "wake_intake"))
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
