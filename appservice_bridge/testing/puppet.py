"""A user of an appservice with a device and real keys (vodozemac), where there is no bot."""

from typing import Final

from appservice_bridge.dev.bot_account import BotAccount
from appservice_bridge.dev.olm_device import OlmDevice
from appservice_bridge.dev.room_keys import RoomKeys
from appservice_bridge.dev.room_members import RoomMembers
from appservice_bridge.testing.background import BackgroundLoop
from appservice_bridge.testing.seen import JsonDict
from appservice_bridge.testing.stage import Stage

KEYS: Final = 5


class Puppet:
    """Opens what the appservice was sent for its device, and speaks in rooms."""

    def __init__(self, loop: BackgroundLoop, account: BotAccount) -> None:
        self._loop = loop
        self._account = account
        self._device = OlmDevice(account.user_id, account.device_id)
        self._room_keys = RoomKeys(self._device)
        self._members = RoomMembers(account, self._device, self._room_keys)

    @classmethod
    async def made(
        cls, stage: Stage, loop: BackgroundLoop, as_token: str, user_id: str, device_id: str
    ) -> "Puppet":
        """Register user and device, and publish device, one-time and fallback keys."""
        account = BotAccount(
            http=stage.http,
            homeserver_url=stage.stack.synapse.url,
            as_token=as_token,
            user_id=user_id,
            device_id=device_id,
        )
        puppet = cls(loop, account)
        await account.register()
        device = puppet._device
        keys = {
            "device_keys": device.device_keys(),
            "one_time_keys": device.new_one_time_keys(KEYS),
            "fallback_keys": device.new_fallback_key(),
        }
        await account.upload_keys(keys)
        device.mark_published()
        return puppet

    @property
    def user_id(self) -> str:
        """Who it is."""
        return self._account.user_id

    @property
    def device_id(self) -> str:
        """Its only device."""
        return self._account.device_id

    def open(self, message: JsonDict) -> JsonDict:
        """Open an `m.room.encrypted` to-device message; a room key is kept for `read`.

        Raises:
            ValueError, KeyError: it is not for this device, or cannot be opened.
        """
        payload = self._device.decrypt(message)
        if payload["type"] == "m.room_key":
            self._room_keys.take(payload["content"])
        return payload

    def read(self, event: JsonDict) -> JsonDict:
        """Open an `m.room.encrypted` room event: its `type` and `content`.

        Raises:
            RoomKeyMissingError: `open` was not given the key yet.
            ValueError, KeyError: it cannot be opened.
        """
        return self._room_keys.decrypt(event)

    async def join(self, room_id: str) -> None:
        """Accept an invitation."""
        await self._loop.call(self._account.join(room_id))

    async def say(self, room_id: str, text: str) -> None:
        """Send a message, encrypted for every device in the room."""
        content = {"msgtype": "m.text", "body": text}
        await self._loop.call(self._members.send_encrypted(room_id, "m.room.message", content))

    async def send_to_device(self, type: str, messages: dict[str, JsonDict]) -> None:
        """Send one content per device, as it is: user id, device id, content."""
        await self._loop.call(self._account.send_to_device(type, messages))
