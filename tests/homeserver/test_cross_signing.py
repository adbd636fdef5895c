"""Cross-signing keys of a real person in a room shared with an appservice's user: `changed`."""

from typing import Any, Final

from signedjson.key import encode_verify_key_base64, generate_signing_key, get_verify_key
from signedjson.sign import sign_json

from tests.homeserver.test_device_lists import heard, until_last, upload_device_keys
from tests.homeserver.test_routing import listening
from tests.support.homeserver import CLIENT, Account, Client, Homeserver

UPLOAD: Final = "/keys/device_signing/upload"


def key_pair() -> Any:
    """A key whose id is its public half, as cross-signing wants it."""
    key = generate_signing_key("new")
    key.version = encode_verify_key_base64(get_verify_key(key))
    return key


def described(account: Account, usage: str, key: Any) -> dict[str, Any]:
    keys = {f"ed25519:{key.version}": key.version}
    return {"user_id": account.user_id, "usage": [usage], "keys": keys}


async def upload_signing_keys(client: Client, account: Account, *, asked: bool) -> Any:
    """New master and self-signing keys; returns the latter.

    Args:
        client: speaks to the homeserver.
        account: whose keys they are; the password is `p`.
        asked: the homeserver wants to see the password, as it does where there were keys.
    """
    master, signing = key_pair(), key_pair()
    own = sign_json(described(account, "self_signing", signing), account.user_id, master)
    body: dict[str, Any] = {
        "master_key": described(account, "master", master),
        "self_signing_key": own,
    }
    if asked:
        body["auth"] = await authorised(client, account, body)
    await client.call("POST", UPLOAD, account.token, body)
    return signing


async def authorised(client: Client, account: Account, body: dict[str, Any]) -> dict[str, Any]:
    """The homeserver's question for the password, answered."""
    headers = {"Authorization": f"Bearer {account.token}"}
    url = f"{client.of.url}{CLIENT}{UPLOAD}"
    async with client.http.post(url, json=body, headers=headers) as response:
        assert response.status == 401
        question = await response.json()
    who = {"type": "m.id.user", "user": account.user_id}
    stage = {"type": "m.login.password", "identifier": who, "password": "p"}
    return stage | {"session": question["session"]}


async def test_case_28_cross_signing_keys_and_signatures_of_somebody_in_a_shared_room_are_changes(
    synapse: Homeserver, client: Client, fresh: str
) -> None:
    alice = await client.person(f"{fresh}_alice")
    puppet = await client.puppet("lab", f"lab_{fresh}")
    device = await upload_device_keys(client, alice)
    async with listening(synapse, "lab") as lab:
        await client.encrypted_room(alice, [puppet])
        await until_last(lab, alice, "changed")
        for asked in (False, True):
            before = len(heard(lab, alice))
            signing = await upload_signing_keys(client, alice, asked=asked)
            await until_last(lab, alice, "changed", after=before)
        before = len(heard(lab, alice))
        signed = sign_json(device, alice.user_id, signing)
        failed = await client.call(
            "POST",
            "/keys/signatures/upload",
            alice.token,
            {alice.user_id: {alice.device_id: signed}},
        )
        assert failed == {"failures": {}}
        await until_last(lab, alice, "changed", after=before)
