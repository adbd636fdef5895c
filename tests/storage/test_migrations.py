"""The bridge's own schema is applied once, whole, by one worker at a time, and only forward."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

import appservice_bridge
from appservice_bridge.blueprint import files
from appservice_bridge.blueprint.files import known_migrations
from appservice_bridge.blueprint.versions import (
    RECORD,
    RECORD_WORKS_FROM,
    SchemaTooNewError,
    works_from,
)
from appservice_bridge.storage import migrations
from appservice_bridge.storage.database import Connection, connect
from appservice_bridge.storage.migrations import (
    PostgresTooOldError,
    SchemaOutdatedError,
    migrate,
    pending,
    require_current,
)

ALL: Final = list(known_migrations())
MARK: Final = re.compile(r"^-- older workers: (?:from \d{4}|none)$", re.MULTILINE)
OBJECTS: Final = """
select c.relkind::text, c.relname, c.oid
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where n.nspname = $1 order by 1, 2
"""
COLUMNS: Final = """
select table_name, column_name from information_schema.columns
 where table_schema = 'appservice_bridge'
"""


@pytest.fixture
async def empty(empty_database: str) -> AsyncIterator[Connection]:
    conn = await connect(empty_database)
    yield conn
    await conn.close()


@pytest.fixture
def schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A schema directory of the test's own, with this release's files in it."""
    for file in known_migrations().values():
        shutil.copy(str(file), tmp_path)
    monkeypatch.setattr(files, "schema_directory", lambda: tmp_path)
    return tmp_path


async def objects(conn: Connection, schema: str = "appservice_bridge") -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await conn.fetch(OBJECTS, schema)]


def test_migrations_are_numbered_from_one_without_a_gap() -> None:
    assert list(range(1, len(ALL) + 1)) == ALL


async def test_migrating_twice_is_a_no_op(empty: Connection) -> None:
    assert await migrate(empty) == ALL
    before = await objects(empty)
    assert await migrate(empty) == []
    assert await objects(empty) == before
    await require_current(empty)
    assert await objects(empty, "public") == []


async def test_it_works_whatever_the_connection_s_settings_are(empty_database: str) -> None:
    settings = {"search_path": "public", "statement_timeout": "0"}
    conn = await asyncpg.connect(empty_database, server_settings=settings)
    assert await migrate(conn) == ALL
    assert await conn.fetchval("show search_path") == "public"
    assert [row[1] for row in await objects(conn, "public")] == []
    await conn.close()


async def test_of_many_at_once_one_migrates_and_the_others_find_it_done(
    empty_database: str,
) -> None:
    connections = [await connect(empty_database) for _ in range(8)]
    for _ in range(5):
        await connections[0].execute("drop schema if exists appservice_bridge cascade")
        done = await asyncio.gather(*(migrate(conn) for conn in connections))
        assert sorted(done) == [[]] * 7 + [ALL]
    for conn in connections:
        await conn.close()


def test_each_migration_says_whether_older_workers_may_go_on() -> None:
    said = {number: MARK.findall(file.read_text()) for number, file in known_migrations().items()}
    silent = [number for number, marks in said.items() if number >= 15 and len(marks) != 1]
    assert silent == []
    oldest = [works_from(file.read_text()) for file in known_migrations().values()]
    assert all(one is None or one < number for number, one in enumerate(oldest, start=1))


async def test_a_schema_that_is_not_for_older_workers_is_refused_and_left_alone(
    empty: Connection,
) -> None:
    await migrate(empty)
    newest = max(ALL)
    for number in (newest + 1, newest + 2):
        await empty.execute(RECORD, number, f"{number:04}_tomorrow.sql")
    await empty.execute(RECORD_WORKS_FROM, newest + 2, newest)  # the one before is for nobody
    before = await objects(empty)
    for refuses in (migrate, pending, require_current):
        with pytest.raises(SchemaTooNewError, match=f"a release that knows {newest + 1:04}") as no:
            await refuses(empty)
        assert (no.value.found, no.value.known, no.value.needed) == (newest + 2, newest, newest + 1)
    assert await objects(empty) == before


async def test_on_a_schema_that_is_for_older_workers_too_a_release_goes_on_and_changes_nothing(
    empty: Connection, schema: Path
) -> None:
    newest, further = max(ALL), [max(ALL) + 1, max(ALL) + 2]
    for number in further:
        text = f"-- older workers: from {newest:04}\ncreate table more_{number} ();"
        (schema / f"{number:04}_more.sql").write_text(text)
    assert await migrate(empty) == [*ALL, *further]
    before = await objects(empty)
    for number in further:
        (schema / f"{number:04}_more.sql").unlink()
    await require_current(empty)
    assert await migrate(empty) == []
    assert await objects(empty) == before
    (schema / known_migrations()[newest].name).unlink()
    with pytest.raises(SchemaTooNewError):  # two releases behind
        await require_current(empty)


async def test_a_database_that_was_never_migrated_is_refused(empty: Connection) -> None:
    with pytest.raises(SchemaOutdatedError) as refused:
        await require_current(empty)
    assert refused.value.pending == ALL
    assert await objects(empty) == []


async def test_a_postgres_that_is_too_old_is_refused_before_anything_is_made(
    empty: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = empty.get_server_version().major
    monkeypatch.setattr(migrations, "OLDEST_POSTGRES", release + 1)
    for refuses in (migrate, require_current):
        with pytest.raises(PostgresTooOldError) as refused:
            await refuses(empty)
        told = f"this is Postgres {release}: the bridge works with {release + 1} to 18"
        assert told in str(refused.value)
    assert await objects(empty) == []
    monkeypatch.setattr(migrations, "OLDEST_POSTGRES", release)
    assert await migrate(empty) == ALL


async def test_a_migration_that_is_pending_is_refused_until_it_is_applied(
    empty: Connection, schema: Path
) -> None:
    await migrate(empty)
    following = max(ALL) + 1
    (schema / f"{following:04}_more.sql").write_text("create table more (n integer);")
    with pytest.raises(SchemaOutdatedError) as refused:
        await require_current(empty)
    assert refused.value.pending == [following]
    assert await migrate(empty) == [following]
    await require_current(empty)
    assert await empty.fetchval("select to_regclass('appservice_bridge.more')") is not None


async def test_a_migration_that_fails_leaves_nothing_of_all_that_were_pending(
    empty: Connection, schema: Path
) -> None:
    following = max(ALL) + 1
    (schema / f"{following:04}_fine.sql").write_text("create table fine (n integer);")
    (schema / f"{following + 1:04}_broken.sql").write_text("create table half (n integer); no;")
    with pytest.raises(asyncpg.PostgresSyntaxError):
        await migrate(empty)
    assert await pending(empty) == [*ALL, following, following + 1]
    assert [row[1] for row in await objects(empty) if row[0] == "r"] == ["schema_version"]


async def test_a_migration_may_take_longer_than_a_statement_may(
    empty_database: str, schema: Path
) -> None:
    first, second = [await connect(empty_database) for _ in range(2)]
    for conn in (first, second):
        await conn.execute("set statement_timeout = '300ms'; set lock_timeout = '100ms'")
    following = max(ALL) + 1
    (schema / f"{following:04}_slow.sql").write_text("select pg_sleep(0.7);")
    done = await asyncio.gather(migrate(first), migrate(second))
    assert sorted(done) == [[], [*ALL, following]]
    assert await first.fetchval("show statement_timeout") == "300ms"
    for conn in (first, second):
        await conn.close()


async def test_every_column_is_named_by_this_release(pg: Connection) -> None:
    package = Path(appservice_bridge.__file__).parent
    sources = [*package.rglob("*.py"), package.parent / "schema" / "synapse" / "capture.sql"]
    words = set(re.findall(r"\w+", "".join(file.read_text() for file in sources)))
    columns = {(row["table_name"], row["column_name"]) for row in await pg.fetch(COLUMNS)}
    assert len(columns) > 100
    assert [column for column in sorted(columns) if column[1] not in words] == []
