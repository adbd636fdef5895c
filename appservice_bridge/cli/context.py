"""What every command that touches the database begins and ends with."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import typer

from appservice_bridge.cli.check import show
from appservice_bridge.config.faults import ConfigError
from appservice_bridge.config.loading import Loaded, load
from appservice_bridge.config.model import EMBEDDED
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.owners import Owners
from appservice_bridge.storage.database import Connection, connect, named_errors

_Result = TypeVar("_Result")


class NotInThisReleaseError(BridgeError):
    """The config asks for something that this release does not have."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is not in this release yet")


def loaded(config: Path) -> Loaded:
    """A sound configuration that this release can serve, or every fault on stderr and exit 1."""
    try:
        of = load(config)
        _refuse_what_is_missing(of)
    except ConfigError as error:
        show(error.faults, error.warnings)
    except NotInThisReleaseError as error:
        typer.echo(f"appservice-bridge: {error}", err=True)
    else:
        return of
    raise typer.Exit(1)


def _refuse_what_is_missing(of: Loaded) -> None:
    """Better refused at once than silently not done."""
    if of.config.database == EMBEDDED:
        raise NotInThisReleaseError("database: embedded")
    if of.config.homeserver.capture == "polling":
        raise NotInThisReleaseError("homeserver.capture: polling")
    for registration in of.registrations:
        settings = of.config.settings(registration)
        if settings.transport not in ("http", "none"):
            what = f"appservice {registration.id}: transport {settings.transport}"
            raise NotInThisReleaseError(what)
    for id_, section in of.config.appservices.items():
        if section.delete_delivered == "on":
            raise NotInThisReleaseError(f"appservice {id_}: delete_delivered")


def finished(work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of a command's work; what it refuses is said in one line, and the exit is 1."""
    try:
        return asyncio.run(work)
    except BridgeError as error:
        typer.echo(f"appservice-bridge: {error}", err=True)
        raise typer.Exit(1) from None


async def with_connection(of: Loaded, work: Callable[[Connection], Awaitable[_Result]]) -> _Result:
    """Do some work on one connection to the bridge's database."""
    conn = await connect(of.config.dsn())
    try:
        with named_errors():
            return await work(conn)
    finally:
        with suppress(Exception):
            await conn.close(timeout=2)


def owners(of: Loaded) -> Owners:
    """The registrations that take delivery, and which of them take part in encryption."""
    settings = {one.id: of.config.settings(one) for one in of.registrations}
    return Owners(
        [one for one in of.registrations if settings[one.id].transport != "none"],
        server_name=of.config.homeserver.server_name,
        encrypted={id_ for id_, setting in settings.items() if setting.encryption},
    )
