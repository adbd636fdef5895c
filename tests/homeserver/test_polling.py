"""A real Synapse without our triggers, and with a trigger that goes and comes back under load."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from appservice_bridge.domain.capture import TRIGGERS
from tests.homeserver.conftest import ODD_ID, SMALL_TRANSACTIONS
from tests.homeserver.receiver import receiver
from tests.homeserver.test_device_keys import (
    ALGORITHM,
    COUNTS,
    FALLBACK,
    LISTS,
    claim,
    latest,
    upload,
    watching,
)
from tests.homeserver.test_room_keys import require_keys_first, room_of, talk
from tests.homeserver.test_routing import got
from tests.homeserver.test_senders import plan_for, require_all
from tests.support.appservice import appservice
from tests.support.homeserver import (
    Client,
    Homeserver,
    homeserver,
    postgres_on_disk,
    registered,
)
from tests.support.load import breaches, judge, send_all, sending

OURS = "select count(*) from pg_trigger where tgname like 'appservice_bridge%%'"
MODE = "select mode, cardinality(problems) from appservice_bridge.capture_state"
WAITING = "select count(*) from appservice_bridge.outbox where user_id = %s"
LAST_WAITING = (
    f"{WAITING} and stream_id = (select max(stream_id) from device_inbox d"
    "                             where d.user_id = outbox.user_id)"
)
TASKS = (
    "select count(*) from appservice_bridge.taken_deletion t"
    "  join public.scheduled_tasks s on s.id = t.task_id where s.params::json->>'user_id' = %s"
)
MESSAGES = 300


@pytest.fixture(scope="module")
def unwatched(synapse_python: str) -> Iterator[Homeserver]:
    """Synapse and a bridge that may only read its tables."""
    appservices = [
        registered("lab", users=["@lab_.*"]),
        registered("load", users=["@load_.*"]),
        registered(
            ODD_ID,
            users=["@odd_.*"],
            sender_localpart="rooms_bot",
            as_token="as_odd",
            hs_token="hs_odd",
        ),
    ]
    config = SMALL_TRANSACTIONS | {"homeserver": {"capture": "polling"}}
    with (
        postgres_on_disk() as server,
        homeserver(server, appservices, config=config, python=synapse_python) as running,
    ):
        assert running.rows(OURS) == [(0,)]
        yield running


@pytest.fixture
async def client(unwatched: Homeserver) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        yield Client(of=unwatched, http=http)


async def test_polling_loses_nothing_of_eight_senders_at_once(
    unwatched: Homeserver, client: Client, tmp_path: Path
) -> None:
    people, puppets = await client.people("sender", 8), await client.puppets("load", "load_", 20)
    plan = plan_for(unwatched, (people, puppets), "polling", 8, messages=MESSAGES)
    port = unwatched.appservices["load"].port.number
    async with receiver(port, tmp_path / "received") as seen:
        sent = await send_all(plan)
        await seen.until_quiet(plan.run, plan.messages, within=30)
        require_all(plan, sent, seen)


async def test_case_26_polling_lets_no_message_come_before_the_room_key_that_opens_it(
    unwatched: Homeserver, client: Client, fresh: str
) -> None:
    async with appservice(unwatched.appservices[ODD_ID].port.number) as seen:
        room = await room_of(client, fresh)
        await talk(client, room, fresh)
        await require_keys_first(seen, fresh)


async def test_case_29_polling_sees_every_change_of_keys(
    unwatched: Homeserver, client: Client, fresh: str
) -> None:
    friend = await client.person(f"{fresh}_friend")
    puppet = await client.puppet("lab", f"lab_{fresh}")
    async with watching(unwatched) as lab:
        await upload(client, puppet, one_time=1, fallback="F1")
        await latest(lab, COUNTS, puppet, {ALGORITHM: 1})
        await latest(lab, FALLBACK, puppet, [ALGORITHM])
        await claim(client, friend, puppet)
        await latest(lab, COUNTS, puppet, {ALGORITHM: 0})
        await claim(client, friend, puppet)
        await latest(lab, FALLBACK, puppet, [])


async def test_polling_sees_new_devices_and_that_one_was_deleted(
    unwatched: Homeserver, client: Client, fresh: str
) -> None:
    sender = await client.person(f"{fresh}_sender")
    puppet = await client.puppet("lab", f"lab_{fresh}")
    gone = "select count(*) from appservice_bridge.deleted_device where user_id = %s"
    async with watching(unwatched) as lab:
        second = await client.log_in("lab", puppet.user_id, "SECOND")
        await latest(lab, COUNTS, second, {ALGORITHM: 0})
        lists = [json.loads(request.body).get(LISTS, {}) for request in lab.taken]
        assert any(puppet.user_id in one.get("changed", ()) for one in lists)
        lab.answer = lambda _: (500, {}, b"")
        await client.send(sender, {puppet.user_id: {"DEV": {"n": 1}}})
        await lab.until(lambda: any(b'"n":1' in request.body for request in lab.requests))
        await client.send(sender, {puppet.user_id: {"SECOND": {"n": 2}}})
        await asyncio.sleep(1.5)  # read before its device goes
        token = unwatched.appservices["lab"].as_token
        await client.call("DELETE", f"/devices/SECOND?user_id={puppet.user_id}", token)
        async with asyncio.timeout(15):
            while unwatched.rows(gone, puppet.user_id) != [(1,)]:
                await asyncio.sleep(0.1)
        await client.send(sender, {puppet.user_id: {"DEV": {"n": 3}}})
        lab.answer = lambda _: (200, {}, b"{}")
        entries = await got(lab, 2, puppet)
    assert [entry["content"]["n"] for entry in entries] == [1, 3]


async def test_case_27_polling_tells_a_device_that_is_made_again_in_one_breath_from_the_old_one(
    unwatched: Homeserver, client: Client, fresh: str
) -> None:
    """Twice between two looks, and what is for the one before was read by then."""
    sender = await client.person(f"{fresh}_sender")
    keeper = await client.puppet("lab", f"lab_{fresh}_keeper")
    puppet = await client.puppet("lab", f"lab_{fresh}")
    token = unwatched.appservices["lab"].as_token
    async with watching(unwatched) as lab:
        lab.answer = lambda _: (500, {}, b"")
        await client.send(sender, {keeper.user_id: {"DEV": {"n": 1}}})
        await lab.until(lambda: any(keeper.user_id.encode() in r.body for r in lab.requests))
        await client.send(sender, {puppet.user_id: {"DEV": {"n": 2}}})
        await seen_in(unwatched, WAITING, puppet.user_id, at_least=1)
        for n in (3, 4):
            await client.call("DELETE", f"/devices/DEV?user_id={puppet.user_id}", token)
            await client.log_in("lab", puppet.user_id, "DEV")
            await client.send(sender, {puppet.user_id: {"DEV": {"n": n}}})
        await seen_in(unwatched, TASKS, puppet.user_id, at_least=2)
        await client.send(sender, {puppet.user_id: {"DEV": {"n": 5}}})  # behind both in the log
        await seen_in(unwatched, LAST_WAITING, puppet.user_id, at_least=1)
        lab.answer = lambda _: (200, {}, b"{}")
        entries = await got(lab, 3, keeper, puppet)
    assert [entry["content"]["n"] for entry in entries] == [1, 4, 5]


async def seen_in(of: Homeserver, count: str, user_id: str, *, at_least: int) -> None:
    """Wait until so many rows are there."""
    async with asyncio.timeout(60):
        while of.rows(count, user_id)[0][0] < at_least:
            await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
def watched(synapse_python: str) -> Iterator[Homeserver]:
    """Synapse with triggers, of its own: one of them goes."""
    with (
        postgres_on_disk() as server,
        homeserver(
            server, [registered("load", users=["@load_.*"])], python=synapse_python
        ) as running,
    ):
        yield running


@pytest.mark.timeout(300)
async def test_a_trigger_that_is_dropped_under_load_and_made_again_loses_and_doubles_nothing(
    watched: Homeserver, tmp_path: Path
) -> None:
    """Dropped, taken over by polling, installed under load, and given back to the triggers."""
    async with aiohttp.ClientSession() as http:
        client = Client(of=watched, http=http)
        crowd = await client.people("sender", 8), await client.puppets("load", "load_", 20)
    plan = plan_for(watched, crowd, "dropped", 8, messages=MESSAGES, lasts_seconds=60)
    port = watched.appservices["load"].port.number
    async with receiver(port, tmp_path / "received") as seen, sending(plan) as task:
        await asyncio.sleep(3)
        assert watched.rows(MODE) == [("triggers", 0)]
        watched.execute("drop trigger appservice_bridge_insert on public.device_inbox")
        await until(watched, "polling", within=60)
        await asyncio.sleep(3)
        assert watched.rows(OURS) == [(len(TRIGGERS) - 1,)]
        await watched.bridge.prepare("install")
        sent = await task
        await until(watched, "triggers", within=120)
        await seen.until_quiet(plan.run, plan.messages, within=60, quiet=40)
        verdict = judge(plan.run, sent, seen.received())
    assert len(sent) == plan.messages
    assert (verdict.lost, verdict.doubled, verdict.unknown) == ((), (), ())
    assert breaches(seen.received()) == []


async def until(of: Homeserver, mode: str, *, within: float) -> None:
    async with asyncio.timeout(within):
        while of.rows(MODE)[0][0] != mode:
            await asyncio.sleep(0.5)
