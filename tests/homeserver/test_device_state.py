"""Snapshots, long outages and the server leaving, on a real Synapse (cases 28, 30 and 31)."""

import asyncio
import json
import sys
from typing import Any, Final

from appservice_bridge.dev.process import ChildCommand, ChildProcess
from tests.homeserver.test_device_keys import ALGORITHM, COUNTS, FALLBACK, LISTS, told, upload
from tests.homeserver.test_device_lists import join, leave, until_last
from tests.homeserver.test_routing import listening
from tests.support.appservice import Appservice
from tests.support.homeserver import Account, Client, Homeserver

PATIENCE_SECONDS: Final = 60.0


async def resync(of: Homeserver, appservice_id: str) -> None:
    arguments = (sys.executable, "-m", "appservice_bridge", "resync", appservice_id, "--config")
    command = ChildCommand(
        name="resync",
        arguments=[*arguments, str(of.bridge.config)],
        log=of.directory / "resync.log",
    )
    assert await ChildProcess.start(command).ended() == 0


def entries(seen: Appservice, first: int) -> list[str]:
    """Every entry of the device lists that was taken since so many requests."""
    bodies: list[dict[str, Any]] = [json.loads(request.body) for request in seen.taken[first:]]
    lists = [body[LISTS] for body in bodies if LISTS in body]
    return [user for one in lists for change in ("changed", "left") for user in one[change]]


def said_of(seen: Appservice, first: int, field: str, account: Account) -> list[Any]:
    """What was said of a user's devices under a field since so many requests."""
    values = [json.loads(request.body).get(field, {}) for request in seen.taken[first:]]
    return [value[account.user_id] for value in values if account.user_id in value]


async def test_case_30_resync_tells_again_of_everyone_and_of_every_device(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    alice = await client.person(f"{fresh}_alice")
    puppet = await client.puppet("lab", f"lab_{fresh}")
    async with listening(synapse, "lab") as lab:
        await client.encrypted_room(alice, [puppet])
        await upload(client, puppet, one_time=3, fallback="F")
        await lab.until(lambda: told(lab, COUNTS, puppet)[-1:] == [{ALGORITHM: 3}])
        await until_last(lab, alice, "changed")
        await asyncio.sleep(1)
        before = len(lab.taken)
        await resync(synapse, "lab")
        await lab.until(lambda: alice.user_id in entries(lab, before), within=PATIENCE_SECONDS)
        await lab.until(lambda: len(told(lab, COUNTS, puppet)) > 1)
        counts = said_of(lab, before, COUNTS, puppet)
        types = said_of(lab, before, FALLBACK, puppet)
    assert counts[-1] == {"DEV": {ALGORITHM: 3}}
    assert types[-1] == {"DEV": [ALGORITHM]}


async def test_case_31_after_an_outage_lists_and_counts_are_as_long_as_what_they_speak_of(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    people = await client.people(f"{fresh}_p", 3)
    puppet = await client.puppet("lab", f"lab_{fresh}")
    async with listening(synapse, "lab") as lab:
        room_id = await client.encrypted_room(people[0], [puppet])
        await until_last(lab, people[0], "changed")
        await asyncio.sleep(1)
        lab.answer = lambda _: (503, {}, b"")
        for _ in range(10):
            for person in people[1:]:
                await client.call(
                    "POST", f"/rooms/{room_id}/invite", people[0].token, {"user_id": person.user_id}
                )
                await join(client, person, room_id)
                await leave(client, person, room_id)
        for number in range(10):
            await upload(client, puppet, one_time=number + 1)
        await asyncio.sleep(2)  # all of it was followed
        before = len(lab.taken)
        lab.answer = lambda _: (200, {}, b"{}")
        await lab.until(lambda: told(lab, COUNTS, puppet)[-1:] == [{ALGORITHM: 10}])
        for person in people[1:]:
            await until_last(lab, person, "left")
        mine = {person.user_id for person in people[1:]}
        heard = [user for user in entries(lab, before) if user in mine]
        counted = [
            one
            for one in lab.taken[before:]
            if puppet.user_id in json.loads(one.body).get(COUNTS, {})
        ]
    # what was sealed when the outage began comes first, and then the latest once
    assert len(heard) <= 2 * len(mine)
    assert len(counted) <= 2


async def test_case_28_the_server_leaves_a_room_with_a_member_from_elsewhere(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    """The remote member's join is written by SQL, as federation would; leaving is Synapse's own."""
    puppet = await client.puppet("lab", f"lab_{fresh}")
    friend = f"@{fresh}_friend:elsewhere.example"
    body = {"preset": "private_chat"}
    async with listening(synapse, "lab") as lab:
        answer = await client.call("POST", "/createRoom", puppet.token, body)
        room_id = str(answer["room_id"])
        remote_join(synapse, room_id, friend)
        await lab.until(lambda: friend in entries(lab, 0), within=PATIENCE_SECONDS)
        await leave(client, puppet, room_id)
        await lab.until(lambda: friend in left(lab), within=PATIENCE_SECONDS)


def left(seen: Appservice) -> list[str]:
    bodies = [json.loads(request.body) for request in seen.taken]
    return [user for body in bodies for user in body.get(LISTS, {}).get("left", ())]


def remote_join(of: Homeserver, room_id: str, user_id: str) -> None:
    """What Synapse writes of a member of another server who joins."""
    event_id = f"${user_id}"
    [(stream_id,)] = of.rows("select nextval('events_stream_seq')")
    of.execute(
        "insert into room_memberships (event_id, user_id, sender, room_id, membership)"
        " values (%s, %s, %s, %s, 'join')",
        *(event_id, user_id, user_id, room_id),
    )
    of.execute(
        "insert into current_state_events (event_id, room_id, type, state_key, membership)"
        " values (%s, %s, 'm.room.member', %s, 'join')",
        *(event_id, room_id, user_id),
    )
    of.execute(
        "insert into current_state_delta_stream (stream_id, room_id, type, state_key, event_id,"
        " prev_event_id, instance_name) values (%s, %s, 'm.room.member', %s, %s, null, 'master')",
        *(stream_id, room_id, user_id, event_id),
    )
