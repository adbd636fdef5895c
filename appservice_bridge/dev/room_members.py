"""Who may read what a bot says: the devices in a room, and a room key for each of them."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from appservice_bridge.dev.bot_account import BotAccount
from appservice_bridge.dev.olm_device import JsonDict, OlmDevice, PeerDevice
from appservice_bridge.dev.room_keys import RoomKeys


@dataclass(slots=True)
class RoomMembers:
    """Knows people's devices until `device_lists` says that they changed."""

    account: BotAccount
    device: OlmDevice
    room_keys: RoomKeys
    _devices: dict[str, set[PeerDevice]] = field(default_factory=dict, init=False)

    def forget(self, device_lists: JsonDict) -> None:
        """Ask again for users whose devices changed, or who left."""
        for user_id in (*device_lists.get("changed", ()), *device_lists.get("left", ())):
            self._devices.pop(user_id, None)

    async def send_encrypted(self, room_id: str, kind: str, content: JsonDict) -> None:
        """Send an event that every device in the room can read."""
        devices = await self._devices_in(room_id)
        key = self.room_keys.outbound(room_id, devices)
        key.holders |= await self._share_key(room_id, devices - key.holders)
        encrypted = self.room_keys.encrypt(room_id, kind, content)
        await self.account.send_event(room_id, "m.room.encrypted", encrypted)

    async def _devices_in(self, room_id: str) -> set[PeerDevice]:
        members = await self.account.joined_members(room_id)
        unknown = [user_id for user_id in members if user_id not in self._devices]
        if unknown:
            await self._query(unknown)
        found = set().union(*(self._devices.get(user_id, set()) for user_id in members))
        return {device for device in found if device.curve25519 != self.device.curve25519}

    async def _query(self, users: Iterable[str]) -> None:
        for user_id, by_device in (await self.account.query_keys(users)).items():
            devices = (PeerDevice.from_keys(user_id, *item) for item in by_device.items())
            self._devices[user_id] = {device for device in devices if device is not None}

    async def _share_key(self, room_id: str, devices: set[PeerDevice]) -> set[PeerDevice]:
        """Give our key to devices; those that could be reached."""
        await self._start_sessions(
            [device for device in devices if not self.device.has_session(device)]
        )
        key = self.room_keys.as_to_device(room_id)
        messages: dict[str, JsonDict] = {}
        reached = {device for device in devices if self.device.has_session(device)}
        for device in reached:
            encrypted = self.device.encrypt(device, "m.room_key", key)
            messages.setdefault(device.user_id, {})[device.device_id] = encrypted
        if messages:
            await self.account.send_to_device("m.room.encrypted", messages)
        return reached

    async def _start_sessions(self, devices: list[PeerDevice]) -> None:
        if not devices:
            return
        wanted: dict[str, dict[str, str]] = {}
        for device in devices:
            wanted.setdefault(device.user_id, {})[device.device_id] = "signed_curve25519"
        claimed = await self.account.claim_keys(wanted)
        for device in devices:
            for key in claimed.get(device.user_id, {}).get(device.device_id, {}).values():
                self.device.start_session(device, key)
