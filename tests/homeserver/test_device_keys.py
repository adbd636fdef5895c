"""One-time keys, fallback keys and devices of a real Synapse, as the appservice is told of them."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from tests.homeserver.test_routing import got, hide_a_device, listening
from tests.support.appservice import Appservice
from tests.support.homeserver import Account, Client, Homeserver

COUNTS: Final = "org.matrix.msc3202.device_one_time_keys_count"
MISNOMER: Final = "org.matrix.msc3202.device_one_time_key_counts"
FALLBACK: Final = "org.matrix.msc3202.device_unused_fallback_key_types"
LISTS: Final = "org.matrix.msc3202.device_lists"
ALGORITHM: Final = "signed_curve25519"


@asynccontextmanager
async def watching(of: Homeserver) -> AsyncIterator[Appservice]:
    async with listening(of, "lab") as lab:
        yield lab


def key(name: str) -> dict[str, Any]:
    return {"key": name.ljust(43, "A"), "signatures": {}}


async def upload(
    client: Client, account: Account, *, one_time: int = 0, fallback: str = ""
) -> None:
    """Upload so many new one-time keys, and a fallback key of this name."""
    body: dict[str, Any] = {}
    if one_time:
        body["one_time_keys"] = {f"{ALGORITHM}:K{n}": key(f"K{n}") for n in range(one_time)}
    if fallback:
        body["fallback_keys"] = {f"{ALGORITHM}:{fallback}": key(fallback) | {"fallback": True}}
    await client.call("POST", "/keys/upload", account.token, body)


async def claim(client: Client, who: Account, whose: Account) -> dict[str, Any]:
    """Claim one key of a device."""
    wanted = {"one_time_keys": {whose.user_id: {whose.device_id: ALGORITHM}}}
    answer = await client.call("POST", "/keys/claim", who.token, wanted)
    claimed: dict[str, Any] = answer["one_time_keys"][whose.user_id][whose.device_id]
    return claimed


def told(lab: Appservice, field: str, account: Account) -> list[Any]:
    """What was said of one device under a field, in order."""
    values = []
    for request in lab.taken:
        devices = json.loads(request.body).get(field, {}).get(account.user_id, {})
        if account.device_id in devices:
            values.append(devices[account.device_id])
    return values


async def latest(lab: Appservice, field: str, account: Account, value: object) -> None:
    """Wait until this is the last that was said."""
    await lab.until(lambda: told(lab, field, account)[-1:] == [value])


async def test_case_29_counts_and_fallback_types_follow_every_upload_and_claim(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    friend = await client.person(f"{fresh}_friend")
    puppet = await client.puppet("lab", f"lab_{fresh}")
    async with watching(synapse) as lab:
        await upload(client, puppet, one_time=2, fallback="F1")
        await latest(lab, COUNTS, puppet, {ALGORITHM: 2})
        await latest(lab, FALLBACK, puppet, [ALGORITHM])
        assert list(await claim(client, friend, puppet)) != []
        await latest(lab, COUNTS, puppet, {ALGORITHM: 1})
        await claim(client, friend, puppet)
        await latest(lab, COUNTS, puppet, {ALGORITHM: 0})  # with no message following
        assert list(await claim(client, friend, puppet)) == [f"{ALGORITHM}:F1"]
        await latest(lab, FALLBACK, puppet, [])
        await upload(client, puppet, fallback="F2")
        await latest(lab, FALLBACK, puppet, [ALGORITHM])
        assert told(lab, COUNTS, puppet) == told(lab, MISNOMER, puppet)


async def test_case_29_hidden_devices_never_appear_nor_users_of_nobody(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    stranger = await client.person(f"{fresh}_stranger")
    puppet = await client.puppet("lab", f"lab_{fresh}")
    async with watching(synapse) as lab:
        await hide_a_device(client, puppet)
        await upload(client, stranger, one_time=1)
        await upload(client, puppet, one_time=1)
        await latest(lab, COUNTS, puppet, {ALGORITHM: 1})
        counted = [json.loads(request.body).get(COUNTS, {}) for request in lab.taken]
    assert all(stranger.user_id not in one for one in counted)
    assert {device for one in counted for device in one.get(puppet.user_id, {})} == {"DEV"}


async def test_an_appservice_hears_of_the_devices_of_its_own_users(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    puppet = await client.puppet("lab", f"lab_{fresh}")
    async with watching(synapse) as lab:
        second = await client.log_in("lab", puppet.user_id, "SECOND")
        await latest(lab, COUNTS, second, {ALGORITHM: 0})
        lists = [json.loads(request.body).get(LISTS, {}) for request in lab.taken]
    assert any(puppet.user_id in one.get("changed", ()) for one in lists)


async def test_case_27_a_device_made_again_under_its_old_name_gets_nothing_of_the_old_one(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    sender = await client.person(f"{fresh}_sender")
    keeper = await client.puppet("lab", f"lab_{fresh}_keeper")
    old = await client.puppet("lab", f"lab_{fresh}")
    async with watching(synapse) as lab:
        lab.answer = lambda _: (500, {}, b"")
        await client.send(sender, {keeper.user_id: {"DEV": {"n": 1}}})
        await lab.until(lambda: any(keeper.user_id.encode() in r.body for r in lab.requests))
        await client.send(sender, {old.user_id: {"DEV": {"n": 2}}})
        token = synapse.appservices["lab"].as_token
        path = f"/devices/DEV?user_id={old.user_id}"
        await client.call("DELETE", path, token)
        new = await client.log_in("lab", old.user_id, "DEV")
        await client.send(sender, {new.user_id: {"DEV": {"n": 3}}})
        lab.answer = lambda _: (200, {}, b"{}")
        entries = await got(lab, 2, keeper, new)
    assert [entry["content"]["n"] for entry in entries] == [1, 3]
