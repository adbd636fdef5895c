"""Case 28 on a real Synapse: whose devices `changed`, and who `left`, as an appservice hears it."""

import asyncio
import json
import uuid
from collections.abc import Mapping
from contextlib import closing
from typing import Any
from urllib.parse import quote

import psycopg2
from signedjson.key import generate_signing_key, get_verify_key
from signedjson.sign import sign_json

from tests.homeserver.test_device_keys import LISTS
from tests.homeserver.test_routing import listening
from tests.support.appservice import Appservice, Request
from tests.support.homeserver import Account, Client, Homeserver

PATIENCE_SECONDS = 60.0


def heard(seen: Appservice, account: Account) -> list[str]:
    """What was said of one user, in order; a transaction says it once."""
    return [
        change
        for request in seen.taken
        for change, users in lists(request).items()
        if account.user_id in users
    ]


def lists(request: Request) -> Mapping[str, list[str]]:
    told: dict[str, list[str]] = json.loads(request.body).get(LISTS, {})
    assert not set(told.get("changed", ())) & set(told.get("left", ()))
    return told


async def until_last(seen: Appservice, account: Account, change: str, *, after: int = 0) -> None:
    """Wait until this is the last that was said, by more than so many times."""

    def said() -> bool:
        told = heard(seen, account)
        return len(told) > after and told[-1] == change

    await seen.until(said, within=PATIENCE_SECONDS)


async def upload_device_keys(client: Client, account: Account) -> dict[str, Any]:
    """New identity keys, signed by the device itself; returns them."""
    signing = generate_signing_key(account.device_id)
    public = get_verify_key(signing).encode().hex()[:43]
    keys: dict[str, Any] = {
        "user_id": account.user_id,
        "device_id": account.device_id,
        "algorithms": ["m.megolm.v1.aes-sha2"],
        "keys": {
            f"ed25519:{account.device_id}": public,
            f"curve25519:{account.device_id}": uuid.uuid4().hex,
        },
    }
    signed: dict[str, Any] = sign_json(keys, account.user_id, signing)
    await client.call("POST", "/keys/upload", account.token, {"device_keys": signed})
    return signed


async def leave(client: Client, account: Account, room_id: str) -> None:
    await client.call("POST", f"/rooms/{quote(room_id)}/leave", account.token, {})


async def join(client: Client, account: Account, room_id: str) -> None:
    await client.call("POST", f"/join/{quote(room_id)}", account.token, {})


async def test_case_28_keys_change_in_a_shared_room_and_the_last_shared_room_is_left_by_the_user(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    alice = await client.person(f"{fresh}_alice")
    puppet = await client.puppet("lab", f"lab_{fresh}")
    async with listening(synapse, "lab") as lab:
        room_id = await client.encrypted_room(alice, [puppet])
        await until_last(lab, alice, "changed")
        before = len(heard(lab, alice))
        await upload_device_keys(client, alice)
        await until_last(lab, alice, "changed", after=before)
        await leave(client, alice, room_id)
        await until_last(lab, alice, "left")


async def test_case_28_the_appservices_user_leaves_the_last_shared_room(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    alice = await client.person(f"{fresh}_alice")
    puppet = await client.puppet("lab", f"lab_{fresh}")
    async with listening(synapse, "lab") as lab:
        rooms = [await client.encrypted_room(alice, [puppet]) for _ in range(2)]
        await until_last(lab, alice, "changed")
        await leave(client, puppet, rooms[0])
        await client.say(alice, rooms[1], {"ciphertext": "…"})
        await lab.until(lambda: any(e["type"] == "m.room.encrypted" for e in lab.events))
        assert "left" not in heard(lab, alice)
        await leave(client, puppet, rooms[1])
        await until_last(lab, alice, "left")


async def test_case_28_the_appservices_user_joins_and_hears_of_all_members(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    people = await client.people(f"{fresh}_p", 3)
    room_id = await client.encrypted_room(people[0], people[1:])
    puppet = await client.puppet("lab", f"lab_{fresh}")
    async with listening(synapse, "lab") as lab:
        path = f"/rooms/{quote(room_id)}/invite"
        await client.call("POST", path, people[0].token, {"user_id": puppet.user_id})
        await join(client, puppet, room_id)
        for person in people:
            await until_last(lab, person, "changed")


async def test_case_28_the_server_leaves_and_who_was_there_has_left(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    """A kick and a ban first; then the appservice's user is the last of this server."""
    people = await client.people(f"{fresh}_p", 3)
    puppet = await client.puppet("lab", f"lab_{fresh}")
    async with listening(synapse, "lab") as lab:
        room_id = await client.encrypted_room(people[0], [*people[1:], puppet])
        for person in people:
            await until_last(lab, person, "changed")
        for how, person in zip(("kick", "ban"), people[1:], strict=True):
            path = f"/rooms/{quote(room_id)}/{how}"
            await client.call("POST", path, people[0].token, {"user_id": person.user_id})
            await until_last(lab, person, "left")
        await leave(client, people[0], room_id)
        await until_last(lab, people[0], "left")
        await leave(client, puppet, room_id)  # the stream has a row without an event for everyone
        query = "select count(*) from current_state_events where room_id = %s"
        assert synapse.rows(query, room_id) == [(0,)]
        query = "select count(*) from appservice_bridge.resident where room_id = %s"
        async with asyncio.timeout(PATIENCE_SECONDS):
            while synapse.rows(query, room_id) != [(0,)]:
                await asyncio.sleep(0.1)


async def test_case_28_two_appservices_hear_each_their_own(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    alice, bob = await client.people(f"{fresh}_p", 2)
    lab_puppet = await client.puppet("lab", f"lab_{fresh}")
    others_puppet = await client.puppet("others", f"others_{fresh}")
    async with listening(synapse, "lab") as lab, listening(synapse, "others") as others:
        await client.encrypted_room(alice, [lab_puppet])
        shared = await client.encrypted_room(bob, [lab_puppet, others_puppet])
        await until_last(lab, alice, "changed")
        await until_last(lab, others_puppet, "changed")
        await until_last(others, bob, "changed")
        await until_last(others, lab_puppet, "changed")
        await leave(client, bob, shared)
        await until_last(lab, bob, "left")
        await until_last(others, bob, "left")
        assert heard(others, alice) == []


async def test_case_28_leave_and_rejoin_while_the_bridge_does_not_look_is_changed_only(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    alice = await client.person(f"{fresh}_alice")
    owner = await client.person(f"{fresh}_owner")
    puppet = await client.puppet("lab", f"lab_{fresh}")
    async with listening(synapse, "lab") as lab:
        room_id = await client.encrypted_room(owner, [alice, puppet])
        await until_last(lab, alice, "changed")
        before = heard(lab, alice)
        with closing(psycopg2.connect(synapse.dsn)) as other:
            other.cursor().execute("select from appservice_bridge.membership_cursor for update")
            await leave(client, alice, room_id)
            path = f"/rooms/{quote(room_id)}/invite"
            await client.call("POST", path, owner.token, {"user_id": alice.user_id})
            await join(client, alice, room_id)
        await until_last(lab, alice, "changed", after=len(before))
        assert "left" not in heard(lab, alice)
