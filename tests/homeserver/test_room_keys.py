"""A room key, then the message it opens: pusher and triggers meet (docs/proof.md, case 26)."""

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import psycopg2

from tests.homeserver.conftest import ODD_ID
from tests.support.appservice import Appservice, appservice
from tests.support.homeserver import Account, Client, Homeserver

TO_DEVICE = "de.sorunome.msc2409.to_device"
PEOPLE = 4
TURNS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """An encrypted room with people in it, and one user of the appservice."""

    room_id: str
    people: Sequence[Account]
    puppet: Account


async def room_of(client: Client, fresh: str) -> Room:
    people = await client.people(f"{fresh}_p", PEOPLE)
    puppet = await client.puppet(ODD_ID, f"odd_{fresh}")
    room_id = await client.encrypted_room(people[0], [*people[1:], puppet])
    return Room(room_id=room_id, people=people, puppet=puppet)


def session_names(fresh: str) -> list[str]:
    return [f"{fresh} {place} {turn}" for place in range(PEOPLE) for turn in range(TURNS)]


async def talk(client: Client, room: Room, fresh: str) -> None:
    """Everyone at once, each message with a key of its own, sent right before it."""

    async def one(place: int) -> None:
        person = room.people[place]
        for turn in range(TURNS):
            name = f"{fresh} {place} {turn}"
            content = {"algorithm": "m.olm.v1.curve25519-aes-sha2", "opens": name}
            to = {room.puppet.user_id: {room.puppet.device_id: content}}
            await client.send(person, to, "m.room.encrypted")
            await client.say(person, room.room_id, {"session_id": name, "ciphertext": "…"})

    async with asyncio.TaskGroup() as group:
        for place in range(PEOPLE):
            group.create_task(one(place))


def places(seen: Appservice, field: str, key: str) -> list[tuple[str, int]]:
    """What each encrypted item is about, and in which of the transactions taken it came."""
    found: list[tuple[str, int]] = []
    known: set[str] = set()
    for at, request in enumerate(seen.taken):
        if request.txn_id in known:
            continue
        known.add(request.txn_id)
        found += [
            (item["content"][key], at)
            for item in request.items(field)
            if item["type"] == "m.room.encrypted"
        ]
    return found


async def require_keys_first(seen: Appservice, fresh: str) -> None:
    wanted = session_names(fresh)

    def messages() -> list[str]:
        return [name for name, _ in places(seen, "events", "session_id") if name in set(wanted)]

    await seen.until(lambda: len(messages()) >= len(wanted), within=30)
    assert sorted(messages()) == sorted(wanted)
    for place in range(PEOPLE):
        own = [name for name in messages() if name.startswith(f"{fresh} {place} ")]
        assert own == [f"{fresh} {place} {turn}" for turn in range(TURNS)]
    keys = places(seen, TO_DEVICE, "opens")
    assert sorted(name for name, _ in keys if name in set(wanted)) == sorted(wanted)
    came = dict(keys)
    late = [
        name
        for name, at in places(seen, "events", "session_id")
        if name in set(wanted) and came[name] > at
    ]
    assert late == []


async def test_case_26_a_room_key_never_comes_after_the_message_it_opens(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    async with appservice(synapse.appservices[ODD_ID].port.number) as seen:
        room = await room_of(client, fresh)
        await talk(client, room, fresh)
        await require_keys_first(seen, fresh)


async def test_case_26_nor_in_catch_up_after_the_appservice_was_down(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    room = await room_of(client, fresh)
    await talk(client, room, fresh)
    async with appservice(synapse.appservices[ODD_ID].port.number) as seen:
        await require_keys_first(seen, fresh)


async def test_case_26_nor_when_keys_and_messages_waited_together_to_be_routed(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    async with appservice(synapse.appservices[ODD_ID].port.number) as seen:
        room = await room_of(client, fresh)
        with closing(psycopg2.connect(synapse.dsn)) as other:
            other.cursor().execute("select from appservice_bridge.intake_gate for update")
            await talk(client, room, fresh)
            waiting = "select count(distinct kind) from appservice_bridge.capture_log"
            assert synapse.rows(waiting) == [(2,)]
        await require_keys_first(seen, fresh)


async def test_case_26_nor_after_the_bridge_was_down_and_the_homeserver_caught_up_with_it(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    room = await room_of(client, fresh)
    os.kill(synapse.bridge.child.pid, signal.SIGKILL)
    await synapse.bridge.child.ended()
    await talk(client, room, fresh)
    async with appservice(synapse.appservices[ODD_ID].port.number) as seen:
        await synapse.start_bridge()
        await require_keys_first(seen, fresh)
