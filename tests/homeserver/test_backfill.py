"""`backfill` on a real Synapse: what its inbox held before the bridge comes once, if asked for."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Final

import aiohttp
import pytest

from appservice_bridge.dev.process import ChildCommand, ChildProcess
from tests.homeserver.test_routing import SECONDS_OF_SILENCE, listening
from tests.support.appservice import Appservice
from tests.support.homeserver import (
    Account,
    Client,
    Homeserver,
    homeserver,
    postgres_on_disk,
    registered,
)

PATIENCE_SECONDS: Final = 60.0


@pytest.fixture(scope="module")
def synapse(synapse_python: str) -> Iterator[Homeserver]:
    """A Synapse of its own: the bridge is taken away from it and attached again."""
    appservices = [registered("bot", users=["@bot_.*"])]
    with (
        postgres_on_disk() as server,
        homeserver(server, appservices, name="before", python=synapse_python) as running,
    ):
        yield running


@pytest.fixture
async def client(synapse: Homeserver) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as http:
        yield Client(of=synapse, http=http)


async def take_the_bridge_away(of: Homeserver) -> None:
    of.bridge.stop()
    await of.bridge.prepare("uninstall")
    of.execute("drop schema appservice_bridge cascade")


async def attach_the_bridge(of: Homeserver) -> None:
    await of.bridge.prepare("migrate")
    await of.bridge.prepare("install")
    await of.start_bridge()


async def backfill(of: Homeserver) -> str:
    """Run the command; what it says."""
    log = of.directory / "backfill.log"
    log.unlink(missing_ok=True)
    words = (sys.executable, "-m", "appservice_bridge", "backfill", "bot", "--config")
    command = ChildCommand(name="backfill", arguments=[*words, str(of.bridge.config)], log=log)
    assert await ChildProcess.start(command).ended() == 0
    return log.read_text()


async def send(client: Client, sender: Account, to: Account, numbers: range) -> None:
    for n in numbers:
        await client.send(sender, {to.user_id: {to.device_id: {"n": n}}})


async def came(bot: Appservice, count: int) -> list[int]:
    """The messages, once there are so many and no more follow."""
    await bot.until(lambda: len(bot.to_device) >= count, within=PATIENCE_SECONDS)
    await asyncio.sleep(SECONDS_OF_SILENCE)
    return [item["content"]["n"] for item in bot.to_device]


async def test_what_was_sent_before_the_bridge_comes_when_it_is_asked_for_once_and_at_the_end(
    synapse: Homeserver, client: Client
) -> None:
    await take_the_bridge_away(synapse)
    sender = await client.person("sender")
    puppet = await client.puppet("bot", "bot_1")
    await send(client, sender, puppet, range(1, 6))
    await attach_the_bridge(synapse)
    async with listening(synapse, "bot") as bot:
        await send(client, sender, puppet, range(6, 8))
        assert await came(bot, 2) == [6, 7]  # it starts at the present
        held = "select count(*) from device_inbox where user_id = %s"
        assert synapse.rows(held, puppet.user_id)[0][0] >= 5
        assert (await backfill(synapse)).startswith("5 messages of 1 devices")
        assert (await backfill(synapse)).startswith("0 messages")
        assert await came(bot, 7) == [6, 7, 1, 2, 3, 4, 5]
        await send(client, sender, puppet, range(8, 9))
        assert (await backfill(synapse)).startswith("0 messages")
        assert await came(bot, 8) == [6, 7, 1, 2, 3, 4, 5, 8]
