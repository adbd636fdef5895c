"""Claims the one-time keys of an appservice's users until none is left."""

import uuid
from typing import Any, Final

from appservice_bridge.config.registrations import read_registration
from appservice_bridge.dev.synapse_users import register_user
from appservice_bridge.storage import devices, synapse
from appservice_bridge.storage.devices import DeviceSeen
from appservice_bridge.testing.slots import Slot
from appservice_bridge.testing.stage import Stage

CLAIM: Final = "/_matrix/client/v3/keys/claim"
ALGORITHM: Final = "signed_curve25519"
PAGE: Final = 1000


async def claim_all(stage: Stage, slot: Slot) -> int:
    """Claim them all, as a person who is nobody else in the test; how many there were.

    One request after the other: to those that come at once Synapse gives the fallback key, too.
    """
    left = [device for device in await _devices(stage, slot) if device.one_time_keys]
    if not left:
        return 0
    person = await register_user(
        stage.stack.synapse.url,
        shared_secret=stage.directory.secrets()["registration_shared_secret"],
        localpart=f"claims-{uuid.uuid4().hex[:8]}",
        password=uuid.uuid4().hex,
        http=stage.http,
    )
    most = max(device.one_time_keys for device in left)
    claims = [
        await _claim(stage, person["access_token"], _round(left, number)) for number in range(most)
    ]
    return sum(claims)


def _round(left: list[DeviceSeen], number: int) -> dict[str, dict[str, str]]:
    """One key of each device that still has some."""
    wanted: dict[str, dict[str, str]] = {}
    for device in left:
        if device.one_time_keys > number:
            wanted.setdefault(device.user_id, {})[str(device.device_id)] = ALGORITHM
    return wanted


async def _claim(stage: Stage, token: str, wanted: dict[str, dict[str, str]]) -> int:
    headers = {"Authorization": f"Bearer {token}"}
    url = stage.stack.synapse.url + CLAIM
    async with stage.http.post(url, json={"one_time_keys": wanted}, headers=headers) as got:
        got.raise_for_status()
        claimed: dict[str, Any] = (await got.json())["one_time_keys"]
    return sum(len(device) for user in claimed.values() for device in user.values())


async def _devices(stage: Stage, slot: Slot) -> list[DeviceSeen]:
    registration = read_registration(slot.file).registration
    if registration is None:
        return []
    server_name = stage.options.server_name
    conn = await stage.connect()
    try:
        found: list[DeviceSeen] = []
        after = ""
        while page := await synapse.users_page(conn, after=after, size=PAGE):
            owned = [one for one in page if registration.owns(one, server_name=server_name)]
            found += await devices.keys_left(conn, owned) if owned else []
            after = page[-1]
        return found
    finally:
        await conn.close()
