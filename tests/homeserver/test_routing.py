"""Who gets what: messages sent through a real Synapse (cases 1 to 8 of docs/proof.md)."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from signedjson.key import encode_verify_key_base64, generate_signing_key, get_verify_key

from tests.support.appservice import Appservice, appservice
from tests.support.homeserver import SERVER, Account, Client, Homeserver

SECONDS_OF_SILENCE = 1.5  # longer than every poll of the bridge


@asynccontextmanager
async def listening(of: Homeserver, appservice_id: str) -> AsyncIterator[Appservice]:
    async with appservice(of.appservices[appservice_id].port.number) as seen:
        yield seen


def sent_to(seen: Appservice, *accounts: Account) -> list[dict[str, Any]]:
    users = {account.user_id for account in accounts}
    return [item for item in seen.to_device if item["to_user_id"] in users]


async def got(seen: Appservice, count: int, *accounts: Account) -> list[dict[str, Any]]:
    await seen.until(lambda: len(sent_to(seen, *accounts)) >= count)
    return sent_to(seen, *accounts)


async def test_case_1_a_message_becomes_one_flat_entry_with_five_keys(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    sender = await client.person(f"{fresh}_sender")
    puppet = await client.puppet("lab", f"lab_{fresh}")
    content = {"body": 'ü "quoted" \\ \u2028 \U0001f511', "n": 2**53 - 1, "list": [None, {}]}
    async with listening(synapse, "lab") as lab:
        await client.send(sender, {puppet.user_id: {puppet.device_id: content}}, "m.some.type")
        entries = await got(lab, 1, puppet)
        assert entries == [
            {
                "to_user_id": puppet.user_id,
                "to_device_id": puppet.device_id,
                "type": "m.some.type",
                "sender": sender.user_id,
                "content": content,
            }
        ]
        [request] = [one for one in lab.requests if one.items("de.sorunome.msc2409.to_device")]
    assert request.path.startswith("/_matrix/app/v1/transactions/ab")
    assert (request.method, request.token) == ("PUT", "hs_lab")
    assert request.items("events") == []


async def hide_a_device(client: Client, account: Account) -> None:
    """Upload a cross-signing key, which Synapse keeps among the user's devices, hidden."""
    public = encode_verify_key_base64(get_verify_key(generate_signing_key("1")))
    master = {
        "user_id": account.user_id,
        "usage": ["master"],
        "keys": {f"ed25519:{public}": public},
    }
    await client.call("POST", "/keys/device_signing/upload", account.token, {"master_key": master})


async def test_case_2_a_wildcard_reaches_each_visible_device_and_no_hidden_one(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    sender = await client.person(f"{fresh}_sender")
    puppet = await client.puppet("lab", f"lab_{fresh}", device="A")
    for device in ("B", "C"):
        await client.log_in("lab", puppet.user_id, device)
    await hide_a_device(client, puppet)
    devices = synapse.rows("select hidden from devices where user_id = %s", puppet.user_id)
    assert sorted(devices) == [(False,), (False,), (False,), (True,)]
    async with listening(synapse, "lab") as lab:
        await client.send(sender, {puppet.user_id: {"*": {"to": "all"}}})
        await client.send(sender, {puppet.user_id: {"A": {"to": "A"}}})
        entries = await got(lab, 4, puppet)
    assert {entry["to_device_id"] for entry in entries[:3]} == {"A", "B", "C"}
    assert [entry["content"]["to"] for entry in entries] == ["all", "all", "all", "A"]


async def test_case_2_a_wildcard_to_a_user_without_devices_is_accepted_and_makes_no_transaction(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    sender = await client.person(f"{fresh}_sender")
    bare = f"@lab_{fresh}:{SERVER}"
    await client.call(
        "POST",
        "/register",
        synapse.appservices["lab"].as_token,
        {
            "type": "m.login.application_service",
            "username": f"lab_{fresh}",
            "inhibit_login": True,
        },
    )
    async with listening(synapse, "lab") as lab:
        await asyncio.sleep(2.5)  # what was owed from before, also behind a rest
        before = len(lab.requests)
        await client.send(sender, {bare: {"*": {"to": "nobody"}}})
        await asyncio.sleep(SECONDS_OF_SILENCE)
        assert len(lab.requests) == before


async def test_case_3_a_device_that_does_not_exist_costs_the_valid_ones_nothing(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    sender = await client.person(f"{fresh}_sender")
    puppet = await client.puppet("lab", f"lab_{fresh}", device="REAL")
    messages = {name: {"to": name} for name in ("GHOST", "REAL", "SPOOK")}
    async with listening(synapse, "lab") as lab:
        await client.send(sender, {puppet.user_id: messages})
        await client.send(sender, {puppet.user_id: {"REAL": {"to": "end"}}})
        entries = await got(lab, 2, puppet)
    assert [(e["to_device_id"], e["content"]["to"]) for e in entries] == [
        ("REAL", "REAL"),
        ("REAL", "end"),
    ]


async def test_case_4_a_remote_user_who_matches_the_regex_is_in_no_transaction(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    sender = await client.person(f"{fresh}_sender")
    puppet = await client.puppet("lab", f"lab_{fresh}")
    remote = f"@lab_{fresh}:elsewhere.example"
    row = json.dumps({"type": "m.x", "sender": sender.user_id, "content": {}})
    async with listening(synapse, "lab") as lab:
        content = {"secret": "for the other server"}
        await client.send(sender, {remote: {"DEV": content}, puppet.user_id: {"DEV": {"n": 1}}})
        # Synapse keeps it out of its inbox; nor would it be taken from there
        synapse.execute("insert into device_inbox values (%s, 'DEV', 1, %s)", remote, row)
        await client.send(sender, {puppet.user_id: {"DEV": {"n": 2}}})
        await got(lab, 2, puppet)
        assert not any(b"elsewhere.example" in request.body for request in lab.requests)


async def test_case_5_a_user_of_two_appservices_reaches_both_whose_acks_are_independent(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    sender = await client.person(f"{fresh}_sender")
    user = await client.puppet("shared_a", f"shared_{fresh}")
    async with listening(synapse, "shared_a") as first:
        await client.send(sender, {user.user_id: {"DEV": {"n": 1}}})
        entries = await got(first, 1, user)  # while the other one is down
    async with listening(synapse, "shared_b") as second:
        assert await got(second, 1, user) == entries


async def test_case_6_the_sender_itself_is_reached_though_it_is_in_no_namespace(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    sender = await client.person(f"{fresh}_sender")
    bot = await client.puppet("sender_only", "sender_only_bot")
    async with listening(synapse, "sender_only") as seen:
        await client.send(sender, {bot.user_id: {"DEV": {"n": 1}}})
        [entry] = await got(seen, 1, bot)
    assert entry["to_user_id"] == f"@sender_only_bot:{SERVER}"


async def test_case_6_users_of_nobody_and_of_a_null_url_leave_nothing_behind(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    sender, nobody = await client.person(f"{fresh}_sender"), await client.person(fresh)
    puppet = await client.puppet("lab", f"lab_{fresh}")
    to_nobody = {nobody.user_id: {nobody.device_id: {"n": 1}}}
    async with listening(synapse, "lab") as lab, listening(synapse, "quiet") as quiet:
        await client.send(sender, to_nobody)
        await client.send(sender, {puppet.user_id: {"DEV": {}}})
        await got(lab, 1, puppet)  # so what was captured before is routed, too
        listed = "select user_id from appservice_bridge.foreign_user where user_id = %s"
        assert synapse.rows(listed, nobody.user_id) == [(nobody.user_id,)]
        await client.send(sender, to_nobody)  # from now on it is not even captured
        await client.send(sender, {puppet.user_id: {"DEV": {}}})
        await got(lab, 2, puppet)
        assert not any(nobody.user_id.encode() in request.body for request in lab.requests)
        assert quiet.requests == []
    foreign = "select items from appservice_bridge.ledger where outcome = 'foreign'"
    assert synapse.rows(foreign)[0] >= (1,)
    for table in ("outbox", "outbox_head", "lane", "ledger", "capture_log"):
        count = f"select count(*) from appservice_bridge.{table} where appservice_id = 'nullurl'"
        assert synapse.rows(count) == [(0,)], table
    outbox = "select count(*) from appservice_bridge.outbox where user_id = %s"
    assert synapse.rows(outbox, nobody.user_id) == [(0,)]


async def test_case_7_one_send_to_three_users_is_one_transaction_in_the_order_of_the_send(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    sender = await client.person(f"{fresh}_sender")
    puppets = await client.puppets("lab", f"lab_{fresh}_", 3)
    order = [puppets[2], puppets[0], puppets[1]]
    async with listening(synapse, "lab") as lab:
        await client.send(sender, {one.user_id: {"DEV": {"to": one.user_id}} for one in order})
        await got(lab, 3, *puppets)
        [request] = [one for one in lab.taken if one.items("de.sorunome.msc2409.to_device")]
    entries = request.items("de.sorunome.msc2409.to_device")
    assert [entry["to_user_id"] for entry in entries] == [one.user_id for one in order]
    assert [entry["content"]["to"] for entry in entries] == [one.user_id for one in order]


async def test_case_7_a_burst_of_150_reaches_each_interested_appservice_and_no_other(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    sender = await client.person(f"{fresh}_sender")
    users = await client.puppets("shared_a", f"shared_{fresh}_", 15)
    async with (
        listening(synapse, "shared_a") as first,
        listening(synapse, "shared_b") as second,
        listening(synapse, "lab") as lab,
        listening(synapse, "quiet") as quiet,
    ):
        for burst in range(5):
            await asyncio.gather(
                *(
                    client.send(
                        sender,
                        {
                            one.user_id: {"DEV": {"n": burst * 150 + number * 15 + at}}
                            for at, one in enumerate(users)
                        },
                    )
                    for number in range(2)
                )
            )
        entries = await got(first, 150, *users)
        assert await got(second, 150, *users) == entries
        assert lab.to_device == []
        assert quiet.requests == []
    wanted = [b * 150 + n * 15 + at for b in range(5) for n in range(2) for at in range(15)]
    assert sorted(entry["content"]["n"] for entry in entries) == wanted
    bursts = [entry["content"]["n"] // 150 for entry in entries]
    assert bursts == sorted(bursts)


async def test_case_8_a_user_registered_a_moment_ago_is_reached(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    sender = await client.person(f"{fresh}_sender")
    async with listening(synapse, "lab") as lab:
        puppets = []
        for number in range(5):
            puppet = await client.puppet("lab", f"lab_{fresh}_{number}")
            await client.send(sender, {puppet.user_id: {"DEV": {"n": number}}})
            puppets.append(puppet)
        entries = await got(lab, 5, *puppets)
    assert [entry["content"]["n"] for entry in entries] == list(range(5))


async def test_case_8_a_user_who_was_messaged_before_it_existed_is_reached_once_it_does(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    sender = await client.person(f"{fresh}_sender")
    later = f"@lab_{fresh}:{SERVER}"
    async with listening(synapse, "lab") as lab:
        await client.send(sender, {later: {"*": {"n": "too early"}}})
        puppet = await client.puppet("lab", f"lab_{fresh}")
        await client.send(sender, {later: {"*": {"n": "in time"}}})
        [entry] = await got(lab, 1, puppet)
    assert entry["content"] == {"n": "in time"}
