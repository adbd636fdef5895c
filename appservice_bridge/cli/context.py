"""What every command that touches the database begins and ends with."""

import asyncio
import getpass
import os
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import typer

from appservice_bridge.cli.check import show
from appservice_bridge.cli.embedded import reachable
from appservice_bridge.config.faults import ConfigError
from appservice_bridge.config.loading import Loaded, load
from appservice_bridge.domain.author import COMMAND, Author
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.owners import Owners
from appservice_bridge.domain.transport import Transport
from appservice_bridge.storage import migrations
from appservice_bridge.storage.database import Connection, Database, connect, named_errors

_Result = TypeVar("_Result")


def loaded(config: Path) -> Loaded:
    """A sound configuration, or every fault on stderr and exit 1."""
    try:
        return load(config)
    except ConfigError as error:
        show(error.faults, error.warnings)
        raise typer.Exit(1) from None


def finished(work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of a command's work; what it refuses is said in one line, and the exit is 1."""
    try:
        return asyncio.run(work)
    except BridgeError as error:
        typer.echo(f"appservice-bridge: {error}", err=True)
        raise typer.Exit(1) from None


def confirmed(question: str) -> None:
    """Go on at a yes; at a no, and where nobody answers, end 1 with nothing done."""
    try:
        sure = typer.confirm(question)
    except typer.Abort:
        typer.echo()  # the question is left standing
        reason = "nothing was done, for nobody answered; --yes does it unasked"
        typer.echo(f"appservice-bridge: {reason}", err=True)
        raise typer.Exit(1) from None
    if not sure:
        raise typer.Abort


def author() -> Author:
    """Whoever runs this command, as the audit names them."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # one without a name, as in some containers
        user = str(os.getuid())
    return Author(name=f"{COMMAND}:{user}", role=COMMAND)


async def with_connection(of: Loaded, work: Callable[[Connection], Awaitable[_Result]]) -> _Result:
    """Do some work on one connection to the bridge's database."""
    with reachable(of) as dsn:
        conn = await connect(dsn)
        try:
            with named_errors():
                return await work(conn)
        finally:
            with suppress(Exception):
                await conn.close(timeout=2)


async def with_database(of: Loaded, work: Callable[[Database], Awaitable[_Result]]) -> _Result:
    """Do some work on the bridge's database, in as many DB transactions as it likes.

    Raises:
        PostgresTooOldError, SchemaTooNewError, SchemaOutdatedError: not for this release.
    """
    with reachable(of) as dsn:
        async with Database.open(dsn, max_connections=1) as database:
            async with database.transaction() as conn:
                await migrations.require_current(conn)
            return await work(database)


def owners(of: Loaded) -> Owners:
    """The registrations that take delivery, and which of them take part in encryption."""
    settings = {one.id: of.config.settings(one) for one in of.registrations}
    return Owners(
        [one for one in of.registrations if settings[one.id].transport != "none"],
        server_name=of.config.homeserver.server_name,
        encrypted={id_ for id_, setting in settings.items() if setting.encryption},
        native_fields=of.config.homeserver.kind == "generic",
    )


def transports(of: Loaded) -> dict[str, Transport]:
    """How each appservice that takes delivery gets it."""
    wanted = {one.id: of.config.settings(one).transport for one in of.registrations}
    return {one: Transport(transport) for one, transport in wanted.items() if transport != "none"}
