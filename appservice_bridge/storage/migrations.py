"""The bridge's own schema: numbered files, applied forward only, one worker at a time."""

import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

import asyncpg

from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.storage.database import Connection

_NUMBERED: Final = re.compile(r"(\d{4})_\w+\.sql")
_MADE_BY_ANOTHER: Final = (
    asyncpg.UniqueViolationError,
    asyncpg.DuplicateObjectError,
    asyncpg.DuplicateSchemaError,
    asyncpg.DuplicateTableError,
)

SCHEMA_EXISTS: Final = """
-- migrations.schema_exists
select to_regclass('appservice_bridge.schema_version') is not null
"""

CREATE_VERSION_TABLE: Final = """
-- migrations.create_version_table
create table if not exists appservice_bridge.schema_version (
    number     integer primary key,
    name       text not null,
    applied_at timestamptz not null default clock_timestamp()
)
"""

CREATE_SCHEMA: Final = """
-- migrations.create_schema
create schema if not exists appservice_bridge
"""

LOCK_VERSIONS: Final = """
-- migrations.lock_versions
lock table appservice_bridge.schema_version in exclusive mode
"""

APPLIED: Final = """
-- migrations.applied
select number from appservice_bridge.schema_version order by number
"""

RECORD: Final = """
-- migrations.record
insert into appservice_bridge.schema_version (number, name) values ($1, $2)
"""


MISSING_GRANT: Final = """
-- migrations.missing_grant
select format('GRANT CREATE ON DATABASE %I TO %I;', current_database(), current_user)
"""


class SchemaTooNewError(BridgeError):
    """A newer release migrated this database; run that release."""

    def __init__(self, found: int, known: int) -> None:
        super().__init__(
            f"the database has schema {found}, this release knows {known}: install a newer one"
        )
        self.found = found
        self.known = known


class SchemaForbiddenError(BridgeError):
    """The role may not create a schema; the owner of the database must grant it."""

    def __init__(self, grant: str) -> None:
        super().__init__(f"the owner of the homeserver's database must run first:\n  {grant}")


class SchemaOutdatedError(BridgeError):
    """Migrations are pending; nothing may run before they are applied."""

    def __init__(self, pending: list[int]) -> None:
        super().__init__(f"migrations pending: {pending}; run `appservice-bridge migrate`")
        self.pending = pending


def schema_directory() -> Traversable:
    """Where the SQL files lie: inside the wheel, or beside the package in a checkout."""
    packaged = files("appservice_bridge") / "schema"
    if packaged.is_dir():
        return packaged
    return Path(__file__).resolve().parents[2] / "schema"


def known_migrations() -> dict[int, Traversable]:
    """Every migration of this release by number, ascending."""
    found = {
        int(match[1]): entry
        for entry in schema_directory().iterdir()
        if (match := _NUMBERED.fullmatch(entry.name))
    }
    return dict(sorted(found.items()))


async def pending(conn: Connection) -> list[int]:
    """Numbers of the migrations that this database lacks.

    Raises:
        SchemaTooNewError: the database was migrated by a newer release.
    """
    known = known_migrations()
    applied = []
    if await conn.fetchval(SCHEMA_EXISTS):
        applied = [row["number"] for row in await conn.fetch(APPLIED)]
    if applied and applied[-1] > max(known):
        raise SchemaTooNewError(applied[-1], max(known))
    return [number for number in known if number not in applied]


async def require_current(conn: Connection) -> None:
    """Refuse a database whose schema is not this release's.

    Raises:
        SchemaTooNewError, SchemaOutdatedError: as their texts say.
    """
    if missing := await pending(conn):
        raise SchemaOutdatedError(missing)


async def migrate(conn: Connection) -> list[int]:
    """Apply what is missing, all of it or nothing; returns the numbers applied.

    Two at once: the second waits for the table lock and finds nothing left to do.

    Raises:
        SchemaTooNewError: the database was migrated by a newer release.
    """
    await _ensure_schema(conn)
    async with conn.transaction():
        await conn.execute("set local search_path = appservice_bridge")
        await conn.execute("set local lock_timeout = 0")
        await conn.execute("set local statement_timeout = 0")  # an index on a full table takes long
        await conn.execute(LOCK_VERSIONS)
        numbers = await pending(conn)
        for number in numbers:
            file = known_migrations()[number]
            await conn.execute(file.read_text(encoding="utf-8"))
            await conn.execute(RECORD, number, file.name)
    return numbers


async def _ensure_schema(conn: Connection) -> None:
    """Create schema and version table, unless someone else just did."""
    if await conn.fetchval(SCHEMA_EXISTS):
        return
    for statement in (CREATE_SCHEMA, CREATE_VERSION_TABLE):
        try:
            await conn.execute(statement)
        except _MADE_BY_ANOTHER:
            continue  # two created it at the same moment, and it is there
        except asyncpg.InsufficientPrivilegeError:
            raise SchemaForbiddenError(await conn.fetchval(MISSING_GRANT)) from None
