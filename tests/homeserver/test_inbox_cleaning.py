"""What leaves a real Synapse's inbox behind the ack, and what stays (case 32 of docs/proof.md)."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Final

import aiohttp
import pytest

from appservice_bridge.sources import inbox_cleaner
from tests.support.appservice import Appservice, appservice
from tests.support.homeserver import (
    Account,
    Client,
    Homeserver,
    homeserver,
    postgres_on_disk,
    registered,
)

KEPT: Final = "select count(*) from device_inbox where user_id = %s and device_id = %s"
NOTED: Final = "select count(*) from appservice_bridge.inbox_delivered where user_id = %s"
WITHIN: Final = inbox_cleaner.GRACE_SECONDS + 3 * inbox_cleaner.EVERY_SECONDS + 5


@pytest.fixture(scope="module")
def synapse(synapse_python: str) -> Iterator[Homeserver]:
    """A Synapse of its own: here one appservice does not opt in."""
    appservices = [
        registered("clean", users=["@clean_.*"]),
        registered("keep", users=["@keep_.*"]),
        registered("open", users=["@open_.*"], exclusive=False),
        registered("two_a", users=["@two_.*"], exclusive=False),
        registered("two_b", users=["@two_.*"], exclusive=False),
    ]
    config = {"appservices": {"keep": {"delete_delivered": "off"}}}
    with (
        postgres_on_disk() as server,
        homeserver(
            server, appservices, name="cleaned", config=config, python=synapse_python
        ) as running,
    ):
        yield running


@pytest.fixture
async def client(synapse: Homeserver) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as http:
        yield Client(of=synapse, http=http)


@asynccontextmanager
async def listening(of: Homeserver, appservice_id: str) -> AsyncIterator[Appservice]:
    async with appservice(of.appservices[appservice_id].port.number) as seen:
        yield seen


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN):
        while not reached():
            await asyncio.sleep(0.2)


def kept(of: Homeserver, account: Account) -> int:
    return int(of.rows(KEPT, account.user_id, account.device_id)[0][0])


async def given(client: Client, seen: Appservice, account: Account, count: int) -> None:
    """So many messages are sent to a user, and acknowledged."""
    sender = await client.person(f"sender_{time.monotonic_ns()}")
    before = len(seen.to_device)
    for n in range(count):
        await client.send(sender, {account.user_id: {account.device_id: {"n": n}}})
    await seen.until(lambda: len(seen.to_device) == before + count)
    assert [item["content"]["n"] for item in seen.to_device[before:]] == list(range(count))


async def test_case_32_what_was_acknowledged_leaves_the_inbox_and_what_follows_still_arrives(
    synapse: Homeserver, client: Client
) -> None:
    puppet = await client.puppet("clean", "clean_1")
    async with listening(synapse, "clean") as clean:
        await given(client, clean, puppet, 5)
        assert kept(synapse, puppet) == 5  # the grace
        await until(lambda: kept(synapse, puppet) == 0)
        await given(client, clean, puppet, 3)
        await until(lambda: kept(synapse, puppet) == 0)
    cleaned = "select sum(items) from appservice_bridge.ledger where outcome = 'cleaned'"
    assert synapse.rows(cleaned)[0][0] >= 8


async def test_case_32_what_is_not_acknowledged_stays(synapse: Homeserver, client: Client) -> None:
    puppet, sender = await client.puppet("clean", "clean_2"), await client.person("early")
    await client.send(sender, {puppet.user_id: {"DEV": {"n": 0}}})  # nobody listens
    await asyncio.sleep(WITHIN)
    assert kept(synapse, puppet) == 1
    async with listening(synapse, "clean") as clean:
        await clean.until(lambda: len(clean.to_device) == 1)
        await until(lambda: kept(synapse, puppet) == 0)


async def test_case_32_and_case_5_without_opt_in_or_exclusive_users_nothing_leaves_the_inbox(
    synapse: Homeserver, client: Client
) -> None:
    keep, one = await client.puppet("keep", "keep_1"), await client.puppet("open", "open_1")
    two = await client.puppet("two_a", "two_1")
    async with (
        listening(synapse, "keep") as seen_by_keep,
        listening(synapse, "open") as seen_by_open,
        listening(synapse, "two_a") as seen_by_a,
        listening(synapse, "two_b") as seen_by_b,
    ):
        await given(client, seen_by_keep, keep, 2)
        await given(client, seen_by_open, one, 2)
        await given(client, seen_by_a, two, 2)
        await seen_by_b.until(lambda: len(seen_by_b.to_device) == 2)
        await asyncio.sleep(WITHIN)
    assert [kept(synapse, account) for account in (keep, one, two)] == [2, 2, 2]
    assert [synapse.rows(NOTED, account.user_id)[0][0] for account in (one, two)] == [0, 0]


async def syncs(client: Client, account: Account, stop: asyncio.Event, taken: list[int]) -> None:
    """A client that keeps calling /sync for this device, as clients do."""
    since = ""
    while not stop.is_set():
        answer = await client.call("GET", f"/sync?timeout=1000{since}", account.token)
        since = f"&since={answer['next_batch']}"
        items = answer.get("to_device", {}).get("events", [])
        taken += [item["content"]["n"] for item in items if "n" in item["content"]]


async def slides(client: Client, account: Account) -> None:
    """One request of simplified sliding sync for this device, which is told of a room."""
    url = f"{client.of.url}/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
    headers = {"Authorization": f"Bearer {account.token}"}
    rooms = {"ranges": [[0, 9]], "required_state": [], "timeline_limit": 1}
    body = {"lists": {"all": rooms}, "extensions": {"to_device": {"enabled": True}}}
    async with client.http.post(url, json=body, headers=headers) as answer:
        assert answer.status == 200, await answer.text()


async def test_case_32_nothing_is_taken_from_a_device_that_also_syncs(
    synapse: Homeserver, client: Client
) -> None:
    puppet = await client.puppet("clean", "clean_3")
    other = await client.log_in("clean", puppet.user_id, "OTHER")
    stop, taken = asyncio.Event(), list[int]()
    async with listening(synapse, "clean") as clean, asyncio.TaskGroup() as group:
        group.create_task(syncs(client, puppet, stop, taken))
        await asyncio.sleep(1)
        await given(client, clean, puppet, 3)
        await until(lambda: taken == [0, 1, 2])
        noticed = "select count(*) from appservice_bridge.syncing_device where user_id = %s"
        await until(lambda: synapse.rows(noticed, puppet.user_id)[0][0] == 1)
        stop.set()
        await asyncio.sleep(1.5)
        await given(client, clean, puppet, 2)  # while it is away
        await given(client, clean, other, 2)
        await until(lambda: kept(synapse, other) == 0)  # of this user's other device they go
        assert kept(synapse, puppet) == 2
        missed = await client.call("GET", "/sync?timeout=0", puppet.token)
    items = missed["to_device"]["events"]
    assert [item["content"]["n"] for item in items] == [0, 1]


async def test_case_32_nothing_is_taken_from_a_device_that_uses_sliding_sync(
    synapse: Homeserver, client: Client
) -> None:
    puppet = await client.puppet("clean", "clean_5")
    neighbour = await client.puppet("clean", "clean_6")
    await client.encrypted_room(await client.person("host"), [puppet])
    await slides(client, puppet)
    async with listening(synapse, "clean") as clean:
        await given(client, clean, puppet, 2)
        await given(client, clean, neighbour, 2)
        await until(lambda: kept(synapse, neighbour) == 0)
    assert kept(synapse, puppet) == 2
