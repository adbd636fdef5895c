"""A real Postgres per session, and a fresh migrated database per test."""

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import asyncpg
import psycopg2
import pytest

from appservice_bridge.dev.postgres import EmbeddedPostgres
from appservice_bridge.storage.migrations import migrate

TEMPLATE: Final = "migrated"
# By default newer releases copy through the WAL; older ones know only this way.
FROM_15_ON: Final = " strategy file_copy"
MEMORY: Final = Path("/dev/shm")
ROOM_IN_MEMORY_BYTES: Final = 1_000_000_000
numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres_server(pytestconfig: pytest.Config) -> Iterator[EmbeddedPostgres]:
    """One server for all tests, in memory where there is room: 20 times as quick to copy there."""
    directory = Path(tempfile.mkdtemp(prefix="appservice-bridge-", dir=_quick_place()))
    try:
        binaries = pytestconfig.getoption("postgres_binaries")
        with EmbeddedPostgres(directory / "postgres", binaries=binaries) as server:
            asyncio.run(_make_template(server))
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def database(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The DSN of a database that is migrated and empty."""
    name = f"test_{next(numbers)}"
    _as_superuser(postgres_server, f"create database {name} template {TEMPLATE}", FROM_15_ON)
    yield postgres_server.dsn(name)
    _as_superuser(postgres_server, f"drop database if exists {name} with (force)")


@pytest.fixture
async def pg(database: str) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    """A connection to the test's database."""
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


def _quick_place() -> Path | None:
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM_IN_MEMORY_BYTES:
        return MEMORY
    return None


async def _make_template(server: EmbeddedPostgres) -> None:
    _as_superuser(server, f"create database {TEMPLATE}")
    connection = await asyncpg.connect(server.dsn(TEMPLATE))
    try:
        await migrate(connection)
    finally:
        await connection.close()


def _as_superuser(server: EmbeddedPostgres, statement: str, from_15_on: str = "") -> None:
    connection = psycopg2.connect(server.dsn())
    connection.autocommit = True
    try:
        more = from_15_on if connection.server_version >= 150000 else ""
        connection.cursor().execute(statement + more)
    finally:
        connection.close()
