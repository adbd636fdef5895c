"""Many senders at once, and kills in between: nothing lost, nothing twice, nothing overtaken.

What dies, how and how often:

| test | process | how | times | when |
|---|---|---|---|---|
| concurrent senders | none | | | |
| kills | the bridge | SIGKILL | 3 | sending, outage, catch-up |
| kills | the appservice | SIGKILL | 1 | sending; back after the outage |
| an orderly stop | the bridge | SIGTERM | 3 | sending, requests in flight |
"""

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import pytest

from tests.homeserver.receiver import Faults, Receiver, receiver
from tests.support.homeserver import Account, Client, Homeserver
from tests.support.load import Plan, Sent, breaches, judge, send_all, sending

MESSAGES = 600
FEWER_MESSAGES = 300
USERS = 40
MOST_SENDERS = 24
OUTAGE_SECONDS = float(os.environ.get("OUTAGE_SECONDS", "20"))

Crowd = tuple[Sequence[Account], Sequence[Account]]


@pytest.fixture(scope="package")
def crowd(synapse: Homeserver) -> Crowd:
    """24 people who send, and 40 users of the appservice."""
    return asyncio.run(crowd_of(synapse, USERS))


async def crowd_of(of: Homeserver, users: int) -> Crowd:
    async with aiohttp.ClientSession() as http:
        client = Client(of=of, http=http)
        people = await client.people("sender", MOST_SENDERS)
        return people, await client.puppets("load", "load_", users)


def plan_for(
    synapse: Homeserver,
    crowd: Crowd,
    run: str,
    senders: int,
    *,
    messages: int = MESSAGES,
    lasts_seconds: float = 0.0,
    insist: bool = True,
) -> Plan:
    people, puppets = crowd
    return Plan(
        run=run,
        url=synapse.url,
        senders=people[:senders],
        recipients=puppets,
        messages=messages,
        every_seconds=lasts_seconds * senders / messages,
        insist=insist,
    )


def require_all(plan: Plan, sent: list[Sent], seen: Receiver) -> None:
    assert len(sent) == plan.messages
    log = seen.received()
    assert breaches(log) == []
    verdict = judge(plan.run, sent, log)
    assert verdict.clean, verdict


@pytest.mark.parametrize("senders", [1, 2, 8, 24])
async def test_messages_of_concurrent_senders_all_arrive_once_and_in_each_senders_order(
    synapse: Homeserver, crowd: Crowd, tmp_path: Path, senders: int
) -> None:
    plan = plan_for(synapse, crowd, f"senders {senders}", senders)
    port = synapse.appservices["load"].port.number
    async with receiver(port, tmp_path / "received") as seen:
        sent = await send_all(plan)
        await seen.until_quiet(plan.run, plan.messages, within=30)
        require_all(plan, sent, seen)


@pytest.mark.parametrize("senders", [2, 8, 24])
async def test_case_26_a_thousand_messages_to_one_device_keep_each_senders_order(
    synapse: Homeserver, crowd: Crowd, tmp_path: Path, senders: int
) -> None:
    people, puppets = crowd
    to_one = (people, puppets[:1])
    plan = plan_for(synapse, to_one, f"one device {senders}", senders, messages=1000)
    port = synapse.appservices["load"].port.number
    async with receiver(port, tmp_path / "received") as seen:
        sent = await send_all(plan)
        await seen.until_quiet(plan.run, plan.messages, within=30)
        require_all(plan, sent, seen)


async def test_kills_of_the_bridge_and_an_outage_of_the_appservice_cost_nothing(
    synapse: Homeserver, crowd: Crowd, tmp_path: Path
) -> None:
    """Sent slowly enough that the sending spans all of it."""
    plan = plan_for(synapse, crowd, "kills", 8, lasts_seconds=OUTAGE_SECONDS + 4)
    faults = Faults(refuse_every=5, delay_seconds=0.1)
    port = synapse.appservices["load"].port.number
    async with receiver(port, tmp_path / "received", faults) as seen, sending(plan) as task:
        await asyncio.sleep(1.5)
        await kill_bridge(synapse)
        await asyncio.sleep(1.0)
        seen.kill()
        await asyncio.sleep(OUTAGE_SECONDS / 2)
        await kill_bridge(synapse)
        await asyncio.sleep(OUTAGE_SECONDS / 2)
        await seen.start()
        await until_something_more_is_taken(seen)
        await kill_bridge(synapse)
        sent = await task
        # the lease of a worker that was killed holds for 10 s
        await seen.until_quiet(plan.run, plan.messages, within=40, quiet=15)
        require_all(plan, sent, seen)
        assert any(each.status == 500 for each in seen.received())
        assert repeats(seen) != []  # one was taken when the bridge died before it knew


async def kill_bridge(of: Homeserver) -> None:
    """SIGKILL, and a new one, as a supervisor would."""
    os.kill(of.bridge.child.pid, signal.SIGKILL)
    assert await of.bridge.child.ended() == -signal.SIGKILL
    await of.start_bridge()


async def until_something_more_is_taken(seen: Receiver) -> None:
    before = len(seen.received())
    async with asyncio.timeout(15):
        while len(seen.received()) <= before:
            await asyncio.sleep(0.005)


async def test_an_orderly_stop_ends_with_0_and_loses_nothing(
    synapse: Homeserver, crowd: Crowd, tmp_path: Path
) -> None:
    plan = plan_for(synapse, crowd, "stops", 8, messages=FEWER_MESSAGES, lasts_seconds=5)
    port = synapse.appservices["load"].port.number
    faults = Faults(delay_seconds=0.05)
    async with receiver(port, tmp_path / "received", faults) as seen, sending(plan) as task:
        for _ in range(3):
            await asyncio.sleep(1.0)
            os.kill(synapse.bridge.child.pid, signal.SIGTERM)
            async with asyncio.timeout(10):
                assert await synapse.bridge.child.ended() == 0
            log = seen.received()
            owed = {each.txn_id for each in log} - {e.txn_id for e in log if e.status == 200}
            assert owed == set()  # what was in flight was finished
            await synapse.start_bridge()
        sent = await task
        await seen.until_quiet(plan.run, plan.messages, within=30)
        require_all(plan, sent, seen)
        assert repeats(seen) == []


def repeats(seen: Receiver) -> list[str]:
    """Transactions that came again after they were taken."""
    taken: set[str] = set()
    found = []
    for each in seen.received():
        if each.status == 200:
            taken.add(each.txn_id)
        elif each.status is None and each.txn_id in taken:
            found.append(each.txn_id)
    return found
