"""What differs in Synapse's database from what triggers and readers need."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from asyncpg import Record

from appservice_bridge.blueprint.files import capture_functions
from appservice_bridge.domain.capture import TRIGGERS
from appservice_bridge.domain.synapse_tables import COLUMNS, POLLED_COLUMNS
from appservice_bridge.storage import grants
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.grants import Right

_FUNCTION: Final = re.compile(
    r"create or replace function appservice_bridge\.(\w+)\(\)(.*?)\nas \$\$(.*?)\$\$;", re.DOTALL
)
_SETTING: Final = re.compile(r"^set (\w+) = '?(.*?)'?$", re.MULTILINE)
_EVENTS: Final = {"insert": 4, "delete": 8, "update": 16}  # of pg_trigger.tgtype, each after
INSTALL: Final = "run `appservice-bridge install`"
NOT_OURS: Final = "is not as it was made"  # TRIGGERS_FOUND says so, too
DROP_FIRST: Final = f"the owner of the table must drop it; then {INSTALL}"
OTHER_RELEASE: Final = (
    "it is left out; run a release of the bridge that knows this Synapse, or mend the table"
)
UNTIL_THEN: Final = (
    "until then a device that is deleted and made again within half a second may get what was for "
    "the one before"
)

MISSING_COLUMNS: Final = """
-- drift.missing_columns
select e.table_name, e.column_name, e.type, to_regclass('public.' || e.table_name) is not null
           as table_is_there,
       format_type(a.atttypid, a.atttypmod) as found
  from unnest($1::text[], $2::text[], $3::text[]) with ordinality
           as e(table_name, column_name, type, place)
  left join pg_attribute a on a.attrelid = to_regclass('public.' || e.table_name)
                          and a.attname = e.column_name and a.attnum > 0 and not a.attisdropped
 where format_type(a.atttypid, a.atttypmod) is distinct from e.type
 order by e.place
"""

TRIGGERS_FOUND: Final = """
-- drift.triggers_found
select e.name, e.table_name,
       case when t.oid is null then 'is not there'
            when t.tgenabled = 'D' then 'is disabled'
            when t.tgenabled = 'R' or t.tgtype <> e.type or t.tgqual is not null
                 or cardinality(t.tgattr) > 0 or t.tgfoid is distinct from
                    to_regprocedure(format('appservice_bridge.%I()', e.function))
                 or coalesce(t.tgnewtable, t.tgoldtable) is distinct from e.rows
            then 'is not as it was made'
       end as fault
  from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::int[]) with ordinality
           as e(name, table_name, function, rows, type, place)
  left join pg_trigger t on t.tgrelid = to_regclass('public.' || e.table_name)
                        and t.tgname = e.name
 order by e.place
"""

FUNCTIONS_FOUND: Final = """
-- drift.functions_found
select p.proname::text as name, p.prosrc as source, p.prosecdef as definer,
       coalesce(p.proconfig, '{}') as settings,
       has_table_privilege(p.proowner, 'appservice_bridge.capture_log', 'INSERT')
       and has_table_privilege(p.proowner, 'appservice_bridge.foreign_user', 'SELECT') as may_write
  from pg_proc p
 where p.pronamespace = to_regnamespace('appservice_bridge') and p.pronargs = 0
"""

SCHEMA_VERSION: Final = """
-- drift.schema_version
select max(version) from public.schema_version
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is not as it should be.

    Attributes:
        unreadable: the table of the homeserver's that cannot be read because of it.
    """

    what: str
    mend: str
    unreadable: str | None = None

    def __str__(self) -> str:
        return f"{self.what}: {self.mend}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function as the release's file makes it.

    Attributes:
        settings: as pg_proc.proconfig has them.
    """

    source: str
    definer: bool
    settings: frozenset[str]


def functions_of_release() -> dict[str, Function]:
    """Every function of the capture by name."""
    text = capture_functions()
    return {
        name: Function(
            source=source,
            definer="security definer" in head,
            settings=frozenset(f"{key}={value}" for key, value in _SETTING.findall(head)),
        )
        for name, head, source in _FUNCTION.findall(text)
    }


async def problems(conn: Connection, *, triggers: bool) -> list[Problem]:
    """All that is wrong now; with `triggers` they have to be there, too.

    Where polling is at work, for whatever reason, also what it has to do without.
    """
    found = [*await _columns(conn, COLUMNS)]
    found += await _rights(conn, found, await grants.rights(conn))
    if triggers:
        found += [*await _functions(conn), *await _triggers(conn)]
    if found or not triggers:
        polled = [*await _columns(conn, POLLED_COLUMNS)]
        polled += await _rights(conn, polled, await grants.rights_of_polling(conn))
        found += [replace(one, mend=f"{one.mend}; {UNTIL_THEN}") for one in polled]
    return found


async def schema_version(conn: Connection) -> int | None:
    """What Synapse says of its tables; only where that can be read."""
    version: int | None = await conn.fetchval(SCHEMA_VERSION)
    return version


async def _columns(conn: Connection, expected: Mapping[str, Mapping[str, str]]) -> list[Problem]:
    wanted = [
        (table, column, type_)
        for table, columns in expected.items()
        for column, type_ in columns.items()
    ]
    rows = await conn.fetch(MISSING_COLUMNS, *map(list, zip(*wanted, strict=True)))
    faults: dict[str, Problem] = {}
    for row in rows:
        table = row["table_name"]
        if not row["table_is_there"]:
            what = f"table {table} is not there"
        elif row["found"] is None:
            what = f"column {row['column_name']} of table {table} is not there"
        else:
            what = (
                f"column {row['column_name']} of table {table} is {row['found']}, not {row['type']}"
            )
        faults.setdefault(what, Problem(what=what, mend=OTHER_RELEASE, unreadable=table))
    return list(faults.values())


async def _rights(
    conn: Connection, known: Sequence[Problem], needed: Sequence[Right]
) -> list[Problem]:
    """What must be read and may not; a trigger that is there needs no right any more."""
    unreadable = {problem.unreadable for problem in known}
    absent = [right for right in needed if not right.held]
    return [
        Problem(
            what=f"the right to read {right.name} is gone",
            mend=f"the owner of the homeserver's database must run {statement}",
            unreadable=right.name.removeprefix("public."),
        )
        for right, statement in zip(absent, await grants.grants(conn, absent), strict=True)
        if right.privilege in ("SELECT", "USAGE")
        and right.name.removeprefix("public.") not in unreadable
    ]


async def _functions(conn: Connection) -> Iterator[Problem]:
    found = {row["name"]: row for row in await conn.fetch(FUNCTIONS_FOUND)}
    return (
        Problem(what=f"function {name} {fault}", mend=INSTALL)
        for name, function in functions_of_release().items()
        if (fault := _fault_of(function, found.get(name)))
    )


def _fault_of(function: Function, found: Record | None) -> str | None:
    if found is None:
        return "is not there"
    as_found = Function(
        source=found["source"],
        definer=found["definer"],
        settings=frozenset(found["settings"]),
    )
    if as_found != function:
        return "is not this release's"
    if function.definer and not found["may_write"]:
        return "belongs to a role that may not write the log"
    return None


async def _triggers(conn: Connection) -> Iterator[Problem]:
    rows = await conn.fetch(
        TRIGGERS_FOUND,
        [trigger.name for trigger in TRIGGERS],
        [trigger.table for trigger in TRIGGERS],
        [trigger.function for trigger in TRIGGERS],
        [trigger.rows for trigger in TRIGGERS],
        [_EVENTS[trigger.event] for trigger in TRIGGERS],
    )
    return (
        Problem(
            what=f"trigger {row['name']} on table {row['table_name']} {row['fault']}",
            mend=DROP_FIRST if row["fault"] == NOT_OURS else INSTALL,
        )
        for row in rows
        if row["fault"]
    )
