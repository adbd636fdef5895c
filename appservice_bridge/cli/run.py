"""`run`: one worker, until it is told to stop."""

import asyncio
import gc
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import aiohttp
import typer
import uvloop

from appservice_bridge.cli.check import ConfigOption, show
from appservice_bridge.cli.context import loaded, with_connection
from appservice_bridge.cli.embedded import embedded, reachable, require_running
from appservice_bridge.cli.generations import Generations
from appservice_bridge.cli.hangups import Hangups
from appservice_bridge.cli.service_manager import ServiceManager
from appservice_bridge.cli.synapse_side import reads_synapse
from appservice_bridge.config.loading import Loaded
from appservice_bridge.delivery.connections import QuietConnector
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.storage import migrations, synapse
from appservice_bridge.storage.database import Database
from appservice_bridge.storage.identity import current_epoch
from appservice_bridge.telemetry import logs

if TYPE_CHECKING:
    from appservice_bridge.dev.postgres import EmbeddedPostgres

STOPPING: Final = (signal.SIGTERM, signal.SIGINT)


def run(
    config: ConfigOption,
    migrate: Annotated[
        bool, typer.Option("--migrate", help="Apply pending migrations first.")
    ] = False,
    log_level: Annotated[
        str | None,
        typer.Option("--log-level", metavar="LEVEL", help="debug, info or warning; by the config."),
    ] = None,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Log lines as JSON, whatever the config says.")
    ] = False,
) -> None:
    """Run one worker until SIGTERM or Ctrl-C; any number may share a database.

    SIGHUP, or a change of the config or a registration file, makes it read them again.
    """
    hangups = Hangups()
    if log_level is not None and log_level not in logs.LEVELS:
        raise typer.BadParameter("must be debug, info or warning", param_hint="--log-level")
    of = loaded(config)
    logs.configure(
        level=log_level or of.config.log.level,
        as_json=log_json or of.config.log.format == "json",
    )
    show((), of.warnings)
    gc.freeze()  # what is loaded stays: a batch of rows is then collected without looking at it all
    try:
        with embedded(of) as server:
            uvloop.run(_run(config, of, server, hangups, migrate=migrate))
    except* BridgeError as group:
        for error in _single(group):
            typer.echo(f"appservice-bridge: {error}", err=True)
        raise typer.Exit(1) from None


def _single(group: BaseExceptionGroup[BridgeError]) -> Iterator[BridgeError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _single(error)
        else:
            yield error


def _let_nothing_interrupt(loop: asyncio.AbstractEventLoop) -> None:
    """The loop is about to close, and would leave a second signal to end us half-way."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    for number in STOPPING:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


async def _run(
    config: Path,
    of: Loaded,
    server: "EmbeddedPostgres | None",
    hangups: Hangups,
    *,
    migrate: bool,
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOPPING:
        loop.add_signal_handler(number, stop.set)
    try:
        await with_connection(of, migrations.migrate if migrate else migrations.require_current)
        await _work(config, of, server, hangups, stop)
    finally:
        _let_nothing_interrupt(loop)


async def _work(
    config: Path,
    of: Loaded,
    server: "EmbeddedPostgres | None",
    hangups: Hangups,
    stop: asyncio.Event,
) -> None:
    if reads_synapse(of):
        server_name = of.config.homeserver.server_name
        await with_connection(of, partial(synapse.require_homeserver, server_name=server_name))
    no_limit = QuietConnector(limit=0)  # one request per lane is all there ever is
    no_cookies = aiohttp.DummyCookieJar()  # one appservice's would reach another on the same host
    with reachable(of) as dsn:
        async with (
            Database.open(dsn, on_connect=current_epoch) as database,
            aiohttp.ClientSession(connector=no_limit, cookie_jar=no_cookies) as session,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(require_running(server, stop), name="embedded")
            loop = asyncio.get_running_loop()
            service = ServiceManager.named_by(os.environ)
            beating = group.create_task(service.beat(), name="watchdog")
            generations = Generations(config, of, database, session, service)
            hangups.tell(lambda: loop.call_soon_threadsafe(generations.ask))
            try:
                await generations.run(stop)
            finally:
                hangups.tell(None)
                beating.cancel()
