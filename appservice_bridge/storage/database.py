"""Connections to Postgres: a pool, and one kind of error for a database that cannot be used now."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from copy import copy
from dataclasses import dataclass
from typing import Final, Self, TypeAlias
from urllib.parse import urlsplit

import asyncpg

from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.storage.hosts import Hosts

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

# Outages by sqlstate class: connection, resources, operator intervention, system; and by
# code: deadlock, serialization, lock not available, read-only (an old primary), idle too long,
# database not there or closed (in the midst of a restore).
_OUTAGE_CLASSES: Final = ("08", "53", "57", "58")
_OUTAGE_CODES: Final = frozenset({"40001", "40P01", "55P03", "25006", "25P03", "3D000", "55000"})

# More than all lanes may have together: leases, commits and intake never wait for lanes.
MOST_TRANSACTIONS: Final = 14
MOST_STATEMENTS: Final = 12

_SETTINGS: Final = {
    "application_name": "appservice_bridge",
    "default_transaction_isolation": "read committed",
    # Our tables are empty one moment and huge the next, and a plan made for the one is cached
    # for the other. Every statement of ours has an index; so plans need not depend on size.
    "enable_bitmapscan": "off",
    "enable_seqscan": "off",
    "jit": "off",
    "idle_in_transaction_session_timeout": "10s",
    "lock_timeout": "5s",
    "search_path": "appservice_bridge",
    "statement_timeout": "30s",
    "synchronous_commit": "on",
    # A worker that is frozen while it reads would else hold what it has locked without limit.
    "tcp_user_timeout": "15s",
    "timezone": "UTC",
}


QUOTED: Final = """
-- database.quoted
select quote_ident($1)
"""

IN_RECOVERY: Final = """
-- database.in_recovery
select pg_is_in_recovery()
"""


CLOCK: Final = """
-- database.clock
select extract(epoch from clock_timestamp())::float8
"""


class DatabaseUnavailableError(BridgeError):
    """The database cannot be used now; rest, and do the whole DB transaction again."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"database unavailable: {reason}")
        self.reason = reason


class RefusedRowError(BridgeError):
    """Postgres refuses a value that was to be written; the same again will be refused again.

    Attributes:
        reason: sqlstate and constraint, never the row.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"row refused: {reason}")
        self.reason = reason


class DatabaseFaultError(BridgeError):
    """Postgres refuses what the bridge does; a fault of ours, or of the rights. It ends the worker.

    The driver's own error is not passed on, for it may quote a row.
    """

    def __init__(self, reason: str, *, mend: str | None = None) -> None:
        super().__init__(f"database fault: {reason}", mend=mend)
        self.reason = reason


class SourceUnreadableError(BridgeError):
    """A table of the homeserver's cannot be read as it is; leave it out, the drift guard says why.

    Attributes:
        reason: sqlstate, and what Postgres says of tables, columns and rights.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"a table of the homeserver's cannot be read: {reason}")
        self.reason = reason


@contextmanager
def reading_synapse() -> Iterator[None]:
    """Tell a table that changed, or a right that went, from a fault of ours.

    Raises:
        SourceUnreadableError: as it says; the DB transaction is of no more use.
    """
    try:
        yield
    except asyncpg.PostgresError as error:
        if (error.sqlstate or "").startswith("42"):  # it names tables and columns, never values
            raise SourceUnreadableError(f"sqlstate {error.sqlstate}: {error}") from None
        raise


def _named(error: Exception) -> BridgeError | None:
    """The bridge's name for a driver error; None if it is none."""
    if isinstance(error, asyncpg.PostgresError):
        return _named_by_state(error)
    if isinstance(error, (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
        return DatabaseUnavailableError(type(error).__name__)
    return None


def _named_by_state(error: asyncpg.PostgresError) -> BridgeError:
    state = error.sqlstate or "unknown"
    if state in _OUTAGE_CODES or state.startswith(_OUTAGE_CLASSES):
        return DatabaseUnavailableError(f"sqlstate {state}")
    constraint = getattr(error, "constraint_name", None)
    reason = f"sqlstate {state}" + (f" {constraint}" if constraint else "")
    if state.startswith(("22", "23", "54")):
        return RefusedRowError(reason)
    if state.startswith(("28", "3D", "42")):
        reason = f"{reason}: {error}"  # names roles, databases, tables and columns, never values
    return DatabaseFaultError(reason)


@contextmanager
def named_errors() -> Iterator[None]:
    """Turn the driver's errors into ours; its own text is not passed on, it may quote a row."""
    try:
        yield
    except Exception as error:
        named = _named(error)
        if named is None:
            raise
        if _cancelled():  # and then the rollback failed: whoever cancelled waits for us to end
            raise asyncio.CancelledError from None
        raise named from None


async def clock_ahead_seconds(conn: Connection) -> float:
    """How far Postgres' clock is ahead of this machine's; negative: behind."""
    asked_at = time.time()
    theirs: float = await conn.fetchval(CLOCK)
    return theirs - (asked_at + time.time()) / 2


def major_release(conn: Connection) -> int:
    """Which Postgres it is, as of 14 for 14.23."""
    return conn.get_server_version().major


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def connect(dsn: str) -> Connection:
    """One connection of its own, with the bridge's session settings.

    Raises:
        DatabaseUnavailableError: nobody answers.
        DatabaseFaultError: the answer is no: a wrong password, say.
    """
    try:
        return await Hosts(dsn).connect(server_settings=dict(_SETTINGS))
    except Exception as error:
        raise _not_connected(dsn, error) from None


def _not_connected(dsn: str, error: Exception) -> BridgeError:
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        return DatabaseFaultError(str(error), mend="create it, or mend `database` in the config")
    if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
        mend = "mend `database` or `database_password_file` in the config"
        return DatabaseFaultError(str(error), mend=mend)
    if isinstance(error, asyncpg.ProtocolViolationError):
        return DatabaseFaultError(
            f"sqlstate {error.sqlstate}: the settings of our sessions are refused, as PgBouncer"
            " does",
            mend="let `database` lead to Postgres itself",
        )
    if isinstance(error, asyncpg.PostgresError):
        return _named_by_state(error)
    where = urlsplit(dsn).netloc.rpartition("@")[2] or "its local socket"
    number = getattr(error, "errno", None)
    what = os.strerror(number) if number and number > 0 else type(error).__name__
    if isinstance(error, socket.gaierror):
        what = "no such host"
    return DatabaseUnavailableError(f"no answer from {where} ({what}); does Postgres run there?")


async def ensure_database(dsn: str, name: str) -> bool:
    """Create a database on the server that `dsn` leads to; False if it was there before.

    Raises:
        DatabaseUnavailableError: nobody answers.
    """
    conn = await connect(dsn)
    try:
        quoted = await conn.fetchval(QUOTED, name)
        await conn.execute(f"create database {quoted}")
    except asyncpg.DuplicateDatabaseError:
        return False
    finally:
        await conn.close()
    return True


async def _as_it_is(_conn: object) -> None:
    """Spare a round trip per DB transaction: no session of ours is ever changed but locally."""


async def _pool(
    dsn: str,
    on_connect: Callable[[Connection], Awaitable[object]] | None,
    *,
    connections: tuple[int, int],
    settings: Mapping[str, str],
) -> Pool:
    async def init(conn: Connection) -> None:
        if on_connect is not None:
            await on_connect(conn)

    try:
        return await asyncpg.create_pool(  # type: ignore[call-overload, no-any-return]
            dsn,
            connect=Hosts(dsn).connect,
            min_size=connections[0],
            max_size=connections[1],
            init=init,
            reset=_as_it_is,
            max_queries=1_000_000_000,
            server_settings=dict(settings),
            command_timeout=40,  # the server's own limit comes first, where it is heard
        )
    except Exception as error:
        raise _not_connected(dsn, error) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Connections:
    """Those that there are, and how many there may be."""

    in_use: int
    idle: int
    limit: int


class Database:
    """Connections to the bridge's database: for DB transactions, and for single statements.

    The single ones run all the time, and planning takes longer than most of them: they are planned
    once in a session, for little and much alike. Each was seen to be right for both.
    """

    def __init__(self, pool: Pool, planned_once: Pool, dsn: str) -> None:
        self._pool = pool
        self._planned_once = planned_once
        self._slots: AbstractAsyncContextManager[object] = nullcontext()
        self.dsn = dsn

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        dsn: str,
        *,
        on_connect: Callable[[Connection], Awaitable[object]] | None = None,
        max_connections: int = MOST_TRANSACTIONS,
    ) -> AsyncIterator[Self]:
        """Open pools for as long as the context lasts; each connection is shown to `on_connect`.

        Raises:
            DatabaseUnavailableError, DatabaseFaultError: the first connection fails.
        """
        async with AsyncExitStack() as stack:
            pool = await _pool(
                dsn, on_connect, connections=(1, max_connections), settings=_SETTINGS
            )
            stack.callback(pool.terminate)
            planned_once = await _pool(
                dsn,
                on_connect,
                connections=(0, MOST_STATEMENTS),
                settings=_SETTINGS | {"plan_cache_mode": "force_generic_plan"},
            )
            stack.callback(planned_once.terminate)
            yield cls(pool, planned_once, dsn)

    def connections(self) -> Connections:
        """How many there are now."""
        pools = (self._pool, self._planned_once)
        idle = sum(pool.get_idle_size() for pool in pools)
        return Connections(
            in_use=sum(pool.get_size() for pool in pools) - idle,
            idle=idle,
            limit=sum(pool.get_max_size() for pool in pools),
        )

    def limited(self, most: int) -> Self:
        """The same for many who may wait: they have so many of its connections at a time.

        Whoever else needs one then never waits behind all of them.
        """
        one = copy(self)
        one._slots = asyncio.Semaphore(most)  # noqa: SLF001 - our own
        return one

    def abandon(self) -> None:
        """Cut every connection: whatever waits for the database fails at once, from now on."""
        self._pool.terminate()
        self._planned_once.terminate()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """One DB transaction at READ COMMITTED, committed when the block ends.

        Raises:
            DatabaseUnavailableError: also when the commit's answer was lost: it may have happened.
            RefusedRowError: Postgres refused a value.
            DatabaseFaultError: Postgres refused what was asked of it.
        """
        with named_errors():
            async with self._slots, self._pool.acquire(timeout=10) as conn:
                try:
                    async with conn.transaction():
                        yield conn  # type: ignore[misc]
                except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                    conn.terminate()  # its protocol state is unknown
                    raise

    @asynccontextmanager
    async def statement(self) -> AsyncIterator[Connection]:
        """For statements each of which is a DB transaction of its own; the same errors."""
        with named_errors():
            async with self._slots, self._planned_once.acquire(timeout=10) as conn:
                try:
                    yield conn  # type: ignore[misc]
                except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                    conn.terminate()
                    raise

    @asynccontextmanager
    async def beside_synapse(self) -> AsyncIterator[Connection]:
        """The same, for what reads the homeserver's tables.

        Raises:
            SourceUnreadableError: they are not as they were.
        """
        async with self.transaction() as conn:
            with reading_synapse():
                yield conn

    async def require_writable(self) -> None:
        """Ask whether facts can be stored now.

        Raises:
            DatabaseUnavailableError: not now.
        """
        async with self.transaction() as conn:
            if await conn.fetchval(IN_RECOVERY):
                raise DatabaseUnavailableError("read only")
