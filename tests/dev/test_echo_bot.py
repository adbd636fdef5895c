import aiohttp
import pytest
from vodozemac import SignatureException

from appservice_bridge.dev.echo_bot import BotSettings, EchoBot
from appservice_bridge.dev.local_server import serving
from appservice_bridge.dev.olm_device import JsonDict, OlmDevice, PeerDevice
from appservice_bridge.dev.ports import LoopbackPort
from appservice_bridge.dev.room_keys import RoomKeyMissingError, RoomKeys

SETTINGS = BotSettings(
    homeserver_url="http://127.0.0.1:1", user_id="@echo:hs", as_token="as", hs_token="hs"
)
ROOM = "!room:hs"


async def put(bot: EchoBot, txn_id: str, token: str) -> int:
    port = LoopbackPort()
    async with (
        serving(bot.app(), port),
        bot.http.put(
            f"{port.url}/_matrix/app/v1/transactions/{txn_id}",
            json={"events": []},
            headers={"Authorization": f"Bearer {token}"},
        ) as answer,
    ):
        return answer.status


async def test_a_repeated_transaction_is_acknowledged_and_not_handled_again() -> None:
    async with aiohttp.ClientSession() as http:
        bot = EchoBot(SETTINGS, http)
        assert [await put(bot, txn, "hs") for txn in ("1", "1", "2")] == [200, 200, 200]
        assert bot.untouched == 2


async def test_only_the_homeserver_may_hand_in_transactions() -> None:
    async with aiohttp.ClientSession() as http:
        bot = EchoBot(SETTINGS, http)
        assert await put(bot, "1", "as") == 403
        assert bot.untouched == 0


def test_a_room_key_goes_by_olm_and_opens_the_message() -> None:
    alice, bob = OlmDevice("@alice:hs", "A"), OlmDevice("@bob:hs", "B")
    alice_rooms, bob_rooms = RoomKeys(alice), RoomKeys(bob)
    bob_for_alice = published(bob)
    alice_rooms.outbound(ROOM, set()).holders.add(bob_for_alice)
    alice.start_session(bob_for_alice, next(iter(bob.new_one_time_keys(1).values())))

    content = alice.encrypt(bob_for_alice, "m.room_key", alice_rooms.as_to_device(ROOM))
    message = alice_rooms.encrypt(ROOM, "m.room.message", {"body": "hello"})
    event = {"room_id": ROOM, "sender": "@alice:hs", "content": message}
    with pytest.raises(RoomKeyMissingError):
        bob_rooms.decrypt(event)
    bob_rooms.take(bob.decrypt({"sender": "@alice:hs", "content": content})["content"])

    assert bob_rooms.decrypt(event)["content"] == {"body": "hello"}
    with pytest.raises(ValueError, match="differ"):
        other = alice.encrypt(bob_for_alice, "m.room_key", alice_rooms.as_to_device(ROOM))
        bob.decrypt({"sender": "@mallory:hs", "content": other})


def test_a_room_key_is_used_no_more_once_a_device_that_has_it_is_gone() -> None:
    rooms = RoomKeys(OlmDevice("@alice:hs", "A"))
    stays, goes = published(OlmDevice("@bob:hs", "B1")), published(OlmDevice("@bob:hs", "B2"))
    first = rooms.outbound(ROOM, {stays, goes})
    first.holders |= {stays, goes}
    assert rooms.outbound(ROOM, {stays, goes}) is first
    assert rooms.outbound(ROOM, {stays}) is not first


def test_keys_that_their_device_did_not_sign_are_not_used() -> None:
    bob = OlmDevice("@bob:hs", "B")
    keys: JsonDict = bob.device_keys()
    forged = {**keys, "keys": {**keys["keys"], "curve25519:B": "A" * 43}}
    assert PeerDevice.from_keys("@bob:hs", "B", keys) is not None
    assert PeerDevice.from_keys("@bob:hs", "B", forged) is None
    mallory = OlmDevice("@bob:hs", "B")
    with pytest.raises(SignatureException):
        OlmDevice("@alice:hs", "A").start_session(
            published(bob), next(iter(mallory.new_one_time_keys(1).values()))
        )


def published(device: OlmDevice) -> PeerDevice:
    peer = PeerDevice.from_keys(device.user_id, device.device_id, device.device_keys())
    assert peer is not None
    return peer
