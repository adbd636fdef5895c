"""A Synapse of several processes, which speak to each other through Redis.

What comes in at the client worker is written to the inbox by another process, and the pusher of
room events hears of them through replication.

What dies, how and how often:

| test | process | how | times | when |
|---|---|---|---|---|
| a to-device writer that is killed | Synapse's to-device writer | SIGKILL | 1 | sending |
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.homeserver.conftest import ODD_ID, SMALL_TRANSACTIONS
from tests.homeserver.receiver import receiver
from tests.homeserver.test_room_keys import require_keys_first, room_of, talk
from tests.homeserver.test_senders import Crowd, crowd_of, plan_for, require_all
from tests.support.appservice import appservice
from tests.support.homeserver import (
    Client,
    Homeserver,
    homeserver,
    postgres_on_disk,
    registered,
)
from tests.support.load import judge, send_all, sending
from tests.support.synapse_workers import TO_DEVICE, SynapseWithWorkers

MESSAGES = 300
USERS = 12


@pytest.fixture(scope="module")
def synapse(synapse_python: str) -> Iterator[Homeserver]:
    """Synapse with workers, the bridge installed in its database before anything is sent."""
    appservices = [
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
            kind=SynapseWithWorkers,
        ) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def crowd(synapse: Homeserver) -> Crowd:
    return asyncio.run(crowd_of(synapse, USERS))


def workers_of(synapse: Homeserver) -> SynapseWithWorkers:
    assert isinstance(synapse.synapse, SynapseWithWorkers)
    return synapse.synapse


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
    assert writers == [(TO_DEVICE,)]


async def test_case_26_a_room_key_that_another_worker_writes_never_comes_after_its_message(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    async with appservice(synapse.appservices[ODD_ID].port.number) as seen:
        room = await room_of(client, fresh)
        await talk(client, room, fresh)
        await require_keys_first(seen, fresh)


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
        workers_of(synapse).kill(TO_DEVICE)
        await asyncio.sleep(0.5)
        await workers_of(synapse).start(TO_DEVICE)
        sent = await task
        sent_later = await send_all(later)
        await seen.until_quiet(later.run, later.messages, within=40, quiet=5)
        require_all(later, sent_later, seen)
        verdict = judge(plan.run, sent, seen.received())
    assert 0 < len(sent) < plan.messages
    assert (verdict.lost, verdict.doubled, verdict.overtaken) == ((), (), ())
    assert len(verdict.unknown) <= senders  # what was in flight
