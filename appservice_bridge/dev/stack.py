"""Everything that one `dev` runs: Postgres, Synapse, the bridge and the echo bot."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml

from appservice_bridge.dev.appservices import (
    BOT_LOCALPART,
    PluggedIn,
    plug_in,
    write_bot_registration,
)
from appservice_bridge.dev.bridge_process import BridgeProcess
from appservice_bridge.dev.dev_directory import DevDirectory
from appservice_bridge.dev.echo_bot import BotSettings, EchoBot
from appservice_bridge.dev.local_server import serving
from appservice_bridge.dev.parts import Part, launched
from appservice_bridge.dev.ports import LoopbackPort
from appservice_bridge.dev.postgres import EmbeddedPostgres
from appservice_bridge.dev.private_file import write_private
from appservice_bridge.dev.story import Story
from appservice_bridge.dev.synapse import Synapse, SynapseSettings
from appservice_bridge.dev.synapse_users import RegistrationRefusedError, register_user
from appservice_bridge.storage.database import ensure_database

log = logging.getLogger(__name__)
SERVER_NAME: Final = "dev.localhost"
DATABASE: Final = "synapse"
BOT_USER: Final = f"@{BOT_LOCALPART}:{SERVER_NAME}"
PERSON_LOCALPART: Final = "alice"
PERSON_USER: Final = f"@{PERSON_LOCALPART}:{SERVER_NAME}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The parts while they run.

    Attributes:
        users: password of each user that was made for people.
    """

    directory: DevDirectory
    postgres: EmbeddedPostgres
    synapse: Synapse
    bridge: BridgeProcess
    appservices: tuple[PluggedIn, ...]
    users: dict[str, dict[str, str]]

    @property
    def parts(self) -> dict[str, Part]:
        """The processes by name, in the order in which they start."""
        return {"postgres": self.postgres, "synapse": self.synapse, "bridge": self.bridge}


@asynccontextmanager
async def running(
    directory: DevDirectory, registrations: Sequence[Path], *, with_bot: bool, story: Story
) -> AsyncIterator[Stack]:
    """Start the parts one after the other; at the end stop them in the opposite order.

    Raises:
        ConfigError: a registration is not sound.
        ChildDiedError: a part did not start.
    """
    bridge = BridgeProcess(directory.config, directory.log("bridge"))
    bot_port = LoopbackPort()
    files = [write_bot_registration(directory, url=bot_port.url)] if with_bot else []
    files += [file.resolve() for file in registrations]
    appservices = plug_in(directory, files, relay_url=bridge.relay.url)
    async with AsyncExitStack() as stop:
        postgres = await _start_postgres(stop, directory, story)
        synapse = await _start_synapse(stop, directory, postgres, appservices, story)
        stack = Stack(
            directory=directory,
            postgres=postgres,
            synapse=synapse,
            bridge=bridge,
            appservices=appservices,
            users={PERSON_USER: {"password": directory.secrets()["person_password"]}},
        )
        await _start_bridge(stop, stack, story)
        await _register_person(stack)
        if with_bot:
            await _start_bot(stop, stack, bot_port, story)
        yield stack


async def _start_postgres(
    stop: AsyncExitStack, directory: DevDirectory, story: Story
) -> EmbeddedPostgres:
    postgres = EmbeddedPostgres(directory.path / "postgres")
    with story.step("Postgres, embedded"):
        stop.callback(postgres.stop)
        await launched(postgres)
        if not await ensure_database(postgres.dsn(), DATABASE):
            story.note("it was here before, and still has its data")
    return postgres


async def _start_synapse(
    stop: AsyncExitStack,
    directory: DevDirectory,
    postgres: EmbeddedPostgres,
    appservices: Sequence[PluggedIn],
    story: Story,
) -> Synapse:
    synapse = Synapse(
        SynapseSettings(
            directory=directory.path / "synapse",
            server_name=SERVER_NAME,
            database=postgres.dsn(DATABASE),
            registration_shared_secret=directory.secrets()["registration_shared_secret"],
            registrations=[appservice.copy for appservice in appservices],
        )
    )
    with story.step("Synapse, a real homeserver, on that Postgres"):
        stop.callback(synapse.stop)
        await launched(synapse)
    return synapse


async def _start_bridge(stop: AsyncExitStack, stack: Stack, story: Story) -> None:
    _write_config(stack)
    with story.step("appservice-bridge migrate: its own schema"):
        await stack.bridge.prepare("migrate")
    with story.step("appservice-bridge install: the capture triggers in Synapse's tables"):
        await stack.bridge.prepare("install")
    with story.step("appservice-bridge run: relay, intake, delivery"):
        stop.callback(stack.bridge.stop)
        await launched(stack.bridge)


def _write_config(stack: Stack) -> None:
    directory = stack.directory
    write_private(directory.admin_token, directory.secrets()["admin_token"])
    write_private(directory.config, yaml.safe_dump(bridge_config(stack), sort_keys=False))


def bridge_config(stack: Stack) -> dict[str, Any]:
    """The bridge's configuration for these parts, as its file holds it."""
    token_file = str(stack.directory.admin_token)
    return {
        "database": stack.synapse.settings.database,
        "data_dir": str(stack.directory.path / "data"),
        "homeserver": {
            "kind": "synapse",
            "server_name": stack.synapse.settings.server_name,
            "url": stack.synapse.url,
            "capture": "triggers",
        },
        "listen": {
            "relay": stack.bridge.relay.address,
            "admin": stack.bridge.admin.address,
        },
        "registrations": [str(appservice.file) for appservice in stack.appservices],
        "admin": {"tokens": [{"name": "dev", "role": "admin", "token_file": token_file}]},
    }


async def _register_person(stack: Stack) -> None:
    secrets = stack.directory.secrets()
    try:
        await register_user(
            stack.synapse.url,
            shared_secret=secrets["registration_shared_secret"],
            localpart=PERSON_LOCALPART,
            password=secrets["person_password"],
        )
    except RegistrationRefusedError as refused:
        if refused.errcode != "M_USER_IN_USE":
            raise


async def _start_bot(stop: AsyncExitStack, stack: Stack, port: LoopbackPort, story: Story) -> None:
    secrets = stack.directory.secrets()
    settings = BotSettings(
        homeserver_url=stack.synapse.url,
        user_id=BOT_USER,
        as_token=secrets["bot_as_token"],
        hs_token=secrets["bot_hs_token"],
    )
    with story.step(f"{BOT_USER}, an encrypted bot, publishes its keys"):
        http = await stop.enter_async_context(aiohttp.ClientSession())
        bot = EchoBot(settings, http, tell=story.note)
        await stop.enter_async_context(serving(bot.app(), port))
        await bot.announce()
    work = asyncio.create_task(_keep_bot(bot, story), name="echo-bot")
    stop.callback(work.cancel)


async def _keep_bot(bot: EchoBot, story: Story) -> None:
    """The bot is a part too: an error that it did not foresee does not end it."""
    while True:
        try:
            await bot.run()
        except Exception:
            log.exception("echo_bot.died")
            story.say("the echo bot died: starting it again")
