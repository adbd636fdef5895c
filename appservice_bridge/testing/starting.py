"""Starts a stage: two things at once where two processors can."""

import asyncio
import os
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

import aiohttp
import yaml

from appservice_bridge.dev.appservices import plug_in
from appservice_bridge.dev.bridge_process import BridgeProcess
from appservice_bridge.dev.dev_directory import DevDirectory
from appservice_bridge.dev.env_file import write_env_file
from appservice_bridge.dev.local_server import serving
from appservice_bridge.dev.parts import launched
from appservice_bridge.dev.ports import LoopbackPort
from appservice_bridge.dev.postgres import EmbeddedPostgres
from appservice_bridge.dev.private_file import write_private
from appservice_bridge.dev.process import ChildDiedError
from appservice_bridge.dev.stack import DATABASE, Stack, bridge_config
from appservice_bridge.dev.synapse import Synapse, SynapseSettings
from appservice_bridge.storage.database import connect, ensure_database
from appservice_bridge.storage.migrations import migrate
from appservice_bridge.testing.slots import Slots
from appservice_bridge.testing.stage import Stage, StageOptions
from appservice_bridge.testing.stand import Stands

LAST_LINES: Final = 15
QUICK: Final = {"backoff": {"first_seconds": 0.1, "ceiling_seconds": 1.0}}


async def started(options: StageOptions) -> Stage:
    """Start everything; close with `Stage.stop`.

    Raises:
        ConfigError: a declared registration is not sound.
        ChildDiedError: a part did not start; its last lines are noted.
    """
    async with AsyncExitStack() as stop:
        try:
            stage = await _started(options, stop)
        except ChildDiedError as died:
            died.add_note(_last_lines(died.log))
            raise
        stage.stop = stop.pop_all()
    return stage


async def _started(options: StageOptions, stop: AsyncExitStack) -> Stage:
    directory = DevDirectory(options.directory)
    stands, port = Stands(), LoopbackPort()
    await stop.enter_async_context(serving(stands.app(), port))
    postgres = EmbeddedPostgres(directory.path / "postgres", durable=False)
    stop.callback(postgres.stop)
    await launched(postgres)
    await ensure_database(postgres.dsn(), DATABASE)
    slots = Slots(directory.for_bridge("any").parent, port.url)
    stage = Stage(
        options=options,
        directory=directory,
        stands=stands,
        slots=slots,
        stack=_stack(options, directory, postgres),
        http=await stop.enter_async_context(aiohttp.ClientSession()),
        stop=stop,
    )
    for file in options.declared:
        stage.stand_for(slots.declare(file))
    stage.add(options.appservices)
    await _start_parts(stage, stop)
    return stage


async def _start_parts(stage: Stage, stop: AsyncExitStack) -> None:
    stack = stage.stack
    files = [slot.file for slot in stage.slots.declared.values()]
    files += [slot.file for slot in stage.slots.free]
    appservices = plug_in(stage.directory, files, relay_url=stack.bridge.relay.url)
    copies = [one.copy for one in appservices]
    stack.synapse.settings = replace(stack.synapse.settings, registrations=copies)
    stage.stack = replace(stack, appservices=appservices)
    _write_config(stage)
    stop.callback(stack.synapse.stop)
    await asyncio.gather(launched(stack.synapse), _migrate(stack.synapse.settings.database))
    await stack.bridge.prepare("install")
    stop.callback(stack.bridge.stop)
    await launched(stack.bridge)
    write_env_file(stage.stack)


async def _migrate(database: str) -> None:
    """What `appservice-bridge migrate` does, without a process of its own to start."""
    conn = await connect(database)
    try:
        await migrate(conn)
    finally:
        await conn.close()


def _write_config(stage: Stage) -> None:
    directory = stage.directory
    write_private(directory.admin_token, directory.secrets()["admin_token"])
    config = bridge_config(stage.stack) | {
        "registrations": [str(stage.slots.directory / "*.yaml")],
        "delivery": QUICK,
    }
    write_private(directory.config, yaml.safe_dump(config, sort_keys=False))


def _stack(options: StageOptions, directory: DevDirectory, postgres: EmbeddedPostgres) -> Stack:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    synapse = Synapse(
        SynapseSettings(
            directory=directory.path / "synapse",
            server_name=options.server_name,
            database=postgres.dsn(DATABASE),
            registration_shared_secret=directory.secrets()["registration_shared_secret"],
            python=str(options.synapse_python),
            environment=kept,
            log_level="WARNING",
        )
    )
    return Stack(
        directory=directory,
        postgres=postgres,
        synapse=synapse,
        bridge=BridgeProcess(directory.config, directory.log("bridge")),
        appservices=(),
        users={},
    )


def _last_lines(log: Path) -> str:
    try:
        return "\n".join(log.read_text("utf-8", "replace").splitlines()[-LAST_LINES:])
    except OSError:
        return ""
