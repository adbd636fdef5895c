"""The bridge's own schema: numbered files, applied forward only, one worker at a time."""

from collections.abc import Iterable
from itertools import groupby
from typing import Final

import asyncpg

from appservice_bridge.blueprint.files import known_migrations
from appservice_bridge.blueprint.versions import (
    APPLIED,
    CREATE_SCHEMA,
    CREATE_VERSION_TABLE,
    LOCK_VERSIONS,
    NEWER,
    RECORD,
    RECORD_WORKS_FROM,
    SCHEMA_EXISTS,
    SchemaTooNewError,
    lacking,
    works_from,
)
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.supported import NEWEST_POSTGRES, OLDEST_POSTGRES
from appservice_bridge.storage.database import Connection, major_release

_MADE_BY_ANOTHER: Final = (
    asyncpg.UniqueViolationError,
    asyncpg.DuplicateObjectError,
    asyncpg.DuplicateSchemaError,
    asyncpg.DuplicateTableError,
)

MISSING_GRANT: Final = """
-- migrations.missing_grant
select format('GRANT CREATE ON DATABASE %I TO %I;', current_database(), current_user)
"""


class PostgresTooOldError(BridgeError):
    """The server is of a release that the bridge does not work with; it must be upgraded."""

    def __init__(self, found: int) -> None:
        super().__init__(
            f"this is Postgres {found}: the bridge works with {OLDEST_POSTGRES} to"
            f" {NEWEST_POSTGRES}",
            mend="upgrade the server first",
        )


class SchemaForbiddenError(BridgeError):
    """The role may not create a schema; the owner of the database must grant it."""

    def __init__(self, grant: str) -> None:
        super().__init__(f"the owner of the homeserver's database must run first:\n  {grant}")


class SchemaOutdatedError(BridgeError):
    """Migrations are pending; nothing may run before they are applied."""

    def __init__(self, pending: list[int]) -> None:
        told = f"migrations pending: {_ranges(pending)}"
        if pending == [*known_migrations()]:
            told = "the bridge's tables are not there yet"
        super().__init__(told, mend="run `appservice-bridge migrate`")
        self.pending = pending


def _ranges(numbers: Iterable[int]) -> str:
    """Of 2, 3, 4 and 6 in order: `0002 to 0004, 0006`."""
    runs = [[*run] for _, run in groupby(enumerate(numbers), lambda one: one[1] - one[0])]
    ends = [(run[0][1], run[-1][1]) for run in runs]
    return ", ".join(f"{a:04}" if a == b else f"{a:04} to {b:04}" for a, b in ends)


async def pending(conn: Connection) -> list[int]:
    """Numbers of the migrations that this database lacks; newer ones may be there.

    Raises:
        SchemaTooNewError: one of the newer ones is not for workers of this release.
    """
    if not await conn.fetchval(SCHEMA_EXISTS):
        return lacking(())
    applied = [row["number"] for row in await conn.fetch(APPLIED)]
    known = max(known_migrations())
    if applied and max(applied) > known:
        ((found, needed),) = await conn.fetch(NEWER, known)
        if needed > known:
            raise SchemaTooNewError(found, known, needed)
    return lacking(number for number in applied if number <= known)


async def require_current(conn: Connection) -> None:
    """Refuse a database that this release cannot work on.

    Raises:
        PostgresTooOldError, SchemaTooNewError, SchemaOutdatedError: as their texts say.
    """
    _require_release(conn)
    if missing := await pending(conn):
        raise SchemaOutdatedError(missing)


async def migrate(conn: Connection) -> list[int]:
    """Apply what is missing, all of it or nothing; returns the numbers applied.

    Two at once: the second waits for the table lock and finds nothing left to do.

    Raises:
        PostgresTooOldError: nothing is made there.
        SchemaTooNewError: as `pending` says.
    """
    _require_release(conn)
    await _ensure_schema(conn)
    async with conn.transaction():
        await conn.execute("set local search_path = appservice_bridge")
        await conn.execute("set local lock_timeout = 0")
        await conn.execute("set local statement_timeout = 0")  # an index on a full table takes long
        await conn.execute(LOCK_VERSIONS)
        numbers = await pending(conn)
        for number in numbers:
            file = known_migrations()[number]
            text = file.read_text(encoding="utf-8")
            await conn.execute(text)
            await conn.execute(RECORD, number, file.name)
            if (oldest := works_from(text)) is not None:
                await conn.execute(RECORD_WORKS_FROM, number, oldest)
    return numbers


def _require_release(conn: Connection) -> None:
    if (found := major_release(conn)) < OLDEST_POSTGRES:
        raise PostgresTooOldError(found)


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
