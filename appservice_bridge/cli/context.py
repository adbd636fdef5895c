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
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.owners import Owners
from appservice_bridge.storage.database import Connection, connect

_Result = TypeVar("_Result")


def loaded(config: Path) -> Loaded:
    """A sound configuration, or every fault of it on stderr and exit 1."""
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


async def with_connection(of: Loaded, work: Callable[[Connection], Awaitable[_Result]]) -> _Result:
    """Do some work on one connection to the bridge's database."""
    conn = await connect(of.config.dsn())
    try:
        return await work(conn)
    finally:
        with suppress(Exception):
            await conn.close(timeout=2)


def owners(of: Loaded) -> Owners:
    """The registrations that take delivery."""
    delivered = [
        registration
        for registration in of.registrations
        if of.config.settings(registration).transport != "none"
    ]
    return Owners(delivered, server_name=of.config.homeserver.server_name)
