"""The database is restored from a backup: ids that were seen are never used for other things."""

import sys
from collections.abc import AsyncIterator, Iterator
from typing import Final

import aiohttp
import psycopg2
import pytest

from appservice_bridge.dev.parts import launched
from appservice_bridge.dev.process import ChildCommand, ChildProcess
from tests.support.appservice import Appservice, appservice
from tests.support.homeserver import (
    Account,
    Client,
    Homeserver,
    homeserver,
    postgres_on_disk,
    registered,
)

NAME: Final = "restored"


@pytest.fixture
def restorable(synapse_python: str) -> Iterator[Homeserver]:
    """A homeserver whose database is exchanged in the middle of its life."""
    with (
        postgres_on_disk() as server,
        homeserver(
            server,
            [registered("lab", users=["@lab_.*"])],
            name=NAME,
            python=synapse_python,
        ) as running,
    ):
        yield running


@pytest.fixture
async def client(restorable: Homeserver) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as http:
        yield Client(of=restorable, http=http)


def exchange(of: Homeserver, *statements: str) -> None:
    """Run statements beside the databases that are copied; nobody may use those."""
    connection = psycopg2.connect(of.postgres.dsn())
    connection.autocommit = True
    try:
        for statement in statements:
            connection.cursor().execute(statement)
    finally:
        connection.close()


async def stopped(of: Homeserver) -> None:
    of.bridge.stop()
    of.synapse.stop()


async def started(of: Homeserver) -> None:
    await launched(of.synapse)
    await launched(of.bridge)


async def said_restored(of: Homeserver) -> None:
    """What an operator does after a restore from a dump."""
    arguments = (sys.executable, "-m", "appservice_bridge", "migrate", "--restored", "--config")
    command = ChildCommand(
        name="bridge", arguments=[*arguments, str(of.bridge.config)], log=of.bridge.log
    )
    assert await ChildProcess.start(command).ended() == 0


async def hears(
    client: Client, lab: Appservice, friend: Account, puppet: Account, room_id: str, word: str
) -> None:
    """A message and an event are sent, and arrive."""
    await client.send(friend, {puppet.user_id: {puppet.device_id: {"word": word}}})
    event_id = await client.say(friend, room_id, {"ciphertext": word})
    await lab.until(lambda: any(e.get("event_id") == event_id for e in lab.events), within=40)
    await lab.until(lambda: any(i["content"].get("word") == word for i in lab.to_device))


async def test_case_33_after_a_restore_no_id_is_used_twice_and_nothing_is_taken_for_a_repeat(
    restorable: Homeserver, client: Client
) -> None:
    of = restorable
    async with appservice(of.appservices["lab"].port.number) as lab:
        friend, puppet = await client.person("friend"), await client.puppet("lab", "lab_1")
        room_id = await client.encrypted_room(friend, [puppet])
        talk = (client, lab, friend, puppet, room_id)
        await hears(*talk, "before")
        await stopped(of)
        exchange(of, f"create database backup template {NAME}")
        await started(of)
        for number in range(5):
            await hears(*talk, f"lost {number}")
        seen = {request.txn_id for request in lab.taken}
        await stopped(of)
        exchange(of, f"drop database {NAME}", f"alter database backup rename to {NAME}")
        await said_restored(of)
        await started(of)
        for number in range(5):
            await hears(*talk, f"after {number}")
        after = {r.txn_id for r in lab.taken if b"after" in r.body}
    assert after
    assert not after & seen
    words = [item["content"]["word"] for item in lab.to_device if "word" in item["content"]]
    assert [word for word in words if word.startswith("after")] == [f"after {n}" for n in range(5)]
    assert [word for word in words if word.startswith("lost")] == [f"lost {n}" for n in range(5)]
