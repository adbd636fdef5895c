"""A Synapse of several processes, which speak to each other through Redis.

A process of its own writes to the inbox, and the pusher of room events hears of them through
replication. Nothing of that shows to the bridge, whose capture is in the database.

What dies, how and how often:

| test | process | how | times | when |
|---|---|---|---|---|
| a to-device writer that is killed | Synapse's to-device writer | SIGKILL | 1 | sending |
"""

import asyncio
import dataclasses
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from signedjson.key import generate_signing_key

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
from tests.homeserver.test_device_lists import heard, until_last
from tests.homeserver.test_room_keys import require_keys_first, room_of, talk
from tests.homeserver.test_routing import got, listening
from tests.homeserver.test_senders import Crowd, crowd_of, plan_for, require_all
from tests.support.appservice import appservice
from tests.support.homeserver import (
    Account,
    Client,
    Homeserver,
    homeserver,
    postgres_on_disk,
    registered,
)
from tests.support.load import judge, send_all, sending
from tests.support.remote_server import RemoteServer
from tests.support.synapse_workers import CLIENT, WRITER, SynapseWithWorkers

REMOTE_KEY = generate_signing_key("1")
MESSAGES = 300
USERS = 12


class WithModule(SynapseWithWorkers):
    """Each of its processes loads the module, whose lines are in its log."""

    def __post_init__(self) -> None:
        super().__post_init__()
        modules = [{"module": "appservice_bridge.synapse.Module", "config": {}}]
        extra = self.settings.extra | {"modules": modules}
        self.settings = dataclasses.replace(self.settings, extra=extra, log_level="INFO")


@pytest.fixture(scope="module")
def synapse(synapse_python: str) -> Iterator[Homeserver]:
    """Synapse with workers, the bridge installed in its database before anything is sent."""
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
    with (
        postgres_on_disk() as server,
        homeserver(
            server,
            appservices,
            config=SMALL_TRANSACTIONS,
            python=synapse_python,
            kind=WithModule,
        ) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def crowd(synapse: Homeserver) -> Crowd:
    return asyncio.run(crowd_of(synapse, USERS))


def workers_of(synapse: Homeserver) -> SynapseWithWorkers:
    assert isinstance(synapse.synapse, SynapseWithWorkers)
    return synapse.synapse


async def test_each_process_loads_the_module_and_exactly_one_acts(synapse: Homeserver) -> None:
    """The commands have installed beside it; there are ten triggers, whoever made them."""
    workers = workers_of(synapse)
    logs = [workers.log, workers.workers[CLIENT].log, workers.workers[WRITER].log]

    def said(words: str) -> list[int]:
        told = [file.read_text().splitlines() for file in logs]
        return [sum(" appservice_bridge.synapse " in x and words in x for x in one) for one in told]

    def acted() -> list[int]:
        pairs = zip(said("capture installed"), said("capture verified"), strict=True)
        return [sum(pair) for pair in pairs]

    async with asyncio.timeout(60):
        while not any(acted()):
            await asyncio.sleep(0.1)
    assert said("loaded: the capture is looked after by") == [1, 1, 1]
    assert said("looked after by this process") == [1, 0, 0]
    assert acted() == [1, 0, 0]
    triggers = "select count(*) from pg_trigger where tgname ~ '^appservice_bridge'"
    assert synapse.rows(triggers) == [(10,)]


@pytest.mark.parametrize("senders", [2, 8, 24])
async def test_case_26_messages_that_another_worker_writes_all_arrive_once_and_in_order(
    synapse: Homeserver, crowd: Crowd, tmp_path: Path, senders: int
) -> None:
    plan = plan_for(synapse, crowd, f"workers {senders}", senders, messages=MESSAGES)
    port = synapse.appservices["load"].port.number
    async with receiver(port, tmp_path / "received") as seen:
        sent = await send_all(plan)
        await seen.until_quiet(plan.run, plan.messages, within=40, quiet=5)
        require_all(plan, sent, seen)
    writers = synapse.rows("select distinct instance_name from device_inbox")
    assert writers == [(WRITER,)]


async def test_case_26_a_room_key_that_another_worker_writes_never_comes_after_its_message(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    async with appservice(synapse.appservices[ODD_ID].port.number) as seen:
        room = await room_of(client, fresh)
        await talk(client, room, fresh)
        await require_keys_first(seen, fresh)


async def test_messages_of_another_server_enter_at_one_worker_and_are_written_by_another(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    remote = remote_of(synapse)
    puppet = await client.puppet("lab", f"lab_{fresh}")
    async with listening(synapse, "lab") as lab:
        for number in range(3):
            await remote.send_to_device(synapse, puppet.user_id, "DEV", {"n": number})
        entries = await got(lab, 3, puppet)
    assert [(entry["sender"], entry["content"]["n"]) for entry in entries] == [
        (f"@someone:{remote.name}", number) for number in range(3)
    ]


def remote_of(synapse: Homeserver) -> RemoteServer:
    """Another server, known to this one from now on."""
    remote = RemoteServer(name=workers_of(synapse).remote.address, key=REMOTE_KEY)
    remote.introduce_to(synapse)
    return remote


async def public_room(client: Client, owner: Account) -> str:
    encryption = {"algorithm": "m.megolm.v1.aes-sha2"}
    state = {"type": "m.room.encryption", "state_key": "", "content": encryption}
    body = {"preset": "public_chat", "initial_state": [state]}
    return str((await client.call("POST", "/createRoom", owner.token, body))["room_id"])


async def test_case_28_devices_of_a_person_on_another_server_change_while_a_room_is_shared(
    synapse: Homeserver, client: Client, fresh: str, tmp_path: Path
) -> None:
    """The other server joins, says that a device is new, is asked for it, and leaves."""
    remote = remote_of(synapse)
    far = Account(user_id=f"@{fresh}:{remote.name}", device_id="FAR", token="")
    puppet = await client.puppet("lab", f"lab_{fresh}")
    async with listening(synapse, "lab") as lab, remote.listening(tmp_path):
        room_id = await public_room(client, puppet)
        await remote.become(synapse, far.user_id, room_id, "join")
        await until_last(lab, far, "changed")
        before = len(heard(lab, far))
        await remote.change_device(synapse, far.user_id, far.device_id)
        await until_last(lab, far, "changed", after=before)
        await remote.become(synapse, far.user_id, room_id, "leave")
        await until_last(lab, far, "left")
    listed = "select device_id from device_lists_remote_cache where user_id = %s"
    assert synapse.rows(listed, far.user_id) == [(far.device_id,)]


async def test_case_29_keys_are_uploaded_at_one_worker_and_claimed_at_another(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    friend = await client.person(f"{fresh}_friend")
    puppet = await client.puppet("lab", f"lab_{fresh}")
    async with watching(synapse) as lab:
        await upload(client, puppet, one_time=1, fallback="F")
        await latest(lab, COUNTS, puppet, {ALGORITHM: 1})
        await claim(client, friend, puppet)
        await latest(lab, COUNTS, puppet, {ALGORITHM: 0})
        assert list(await claim(client, friend, puppet)) == [f"{ALGORITHM}:F"]
        await latest(lab, FALLBACK, puppet, [])


async def test_a_device_that_one_worker_makes_and_another_lists_is_told_of(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    puppet = await client.puppet("lab", f"lab_{fresh}")
    async with watching(synapse) as lab:
        second = await client.log_in("lab", puppet.user_id, "SECOND")
        await latest(lab, COUNTS, second, {ALGORITHM: 0})
        lists = [json.loads(request.body).get(LISTS, {}) for request in lab.taken]
    assert any(puppet.user_id in one.get("changed", ()) for one in lists)
    by = "select distinct instance_name from device_lists_stream where user_id = %s"
    assert synapse.rows(by, puppet.user_id) == [(WRITER,)]


async def test_what_a_to_device_writer_accepted_before_it_was_killed_arrives(
    synapse: Homeserver, crowd: Crowd, tmp_path: Path
) -> None:
    """What it refused may come, too: it may have died between its commit and its answer."""
    senders = 8
    plan = plan_for(
        synapse, crowd, "killed", senders, messages=MESSAGES, lasts_seconds=10, insist=False
    )
    later = plan_for(synapse, crowd, "later", senders, messages=MESSAGES // 4)
    port = synapse.appservices["load"].port.number
    async with receiver(port, tmp_path / "received") as seen, sending(plan) as task:
        await asyncio.sleep(2.0)
        workers_of(synapse).kill(WRITER)
        await asyncio.sleep(0.5)
        await workers_of(synapse).start(WRITER)
        sent = await task
        sent_later = await send_all(later)
        await seen.until_quiet(later.run, later.messages, within=40, quiet=5)
        require_all(later, sent_later, seen)
        verdict = judge(plan.run, sent, seen.received())
    assert 0 < len(sent) < plan.messages
    assert (verdict.lost, verdict.doubled, verdict.overtaken) == ((), (), ())
    assert len(verdict.unknown) <= senders  # what was in flight


async def test_the_worker_that_pushes_room_events_is_woken_when_the_bridge_is_back(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    """It would rest from the 14th second after its first failure to the 30th."""
    room = await room_of(client, fresh)
    os.kill(synapse.bridge.child.pid, signal.SIGKILL)
    await synapse.bridge.child.ended()
    failed = time.monotonic()
    await talk(client, room, fresh)
    await asyncio.sleep(failed + 16.0 - time.monotonic())
    async with appservice(synapse.appservices[ODD_ID].port.number) as seen:
        await synapse.start_bridge()
        await require_keys_first(seen, fresh)
    assert time.monotonic() - failed < 29.0
