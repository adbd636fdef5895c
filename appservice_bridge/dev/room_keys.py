"""The Megolm side of a bot's device: room keys it was given, and one of its own per room."""

import json
from dataclasses import dataclass, field
from typing import Any

from vodozemac import GroupSession, InboundGroupSession, MegolmMessage, SessionKey

from appservice_bridge.dev.olm_device import MEGOLM, JsonDict, OlmDevice, PeerDevice


class RoomKeyMissingError(LookupError):
    """No key for this message yet; keep it until the key comes."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"no room key {session_id}")
        self.session_id = session_id


@dataclass(slots=True)
class OutboundRoomKey:
    """The key that we encrypt one room with, and the devices that were given it."""

    session: GroupSession = field(default_factory=GroupSession)
    holders: set[PeerDevice] = field(default_factory=set)


@dataclass(slots=True)
class RoomKeys:
    """Encrypts and decrypts room events."""

    device: OlmDevice
    _inbound: dict[tuple[str, str], InboundGroupSession] = field(default_factory=dict, init=False)
    _outbound: dict[str, OutboundRoomKey] = field(default_factory=dict, init=False)

    def take(self, content: JsonDict) -> str:
        """Keep the key of an `m.room_key` that came by Olm; its session id.

        Raises:
            ValueError, KeyError: it is not such a key.
        """
        if content["algorithm"] != MEGOLM:
            raise ValueError("a room key of another algorithm")
        session_id: str = content["session_id"]
        known = self._inbound.get((content["room_id"], session_id))
        session = InboundGroupSession(SessionKey(content["session_key"]))
        if known is None or session.first_known_index < known.first_known_index:
            self._inbound[content["room_id"], session_id] = session
        return session_id

    def decrypt(self, event: JsonDict) -> JsonDict:
        """The event inside an `m.room.encrypted` event: `type`, `content`.

        Raises:
            RoomKeyMissingError: the key has not come yet.
            ValueError, KeyError: the event cannot be opened.
        """
        content = event["content"]
        session = self._inbound.get((event["room_id"], content["session_id"]))
        if session is None:
            raise RoomKeyMissingError(content["session_id"])
        opened = session.decrypt(MegolmMessage.from_base64(content["ciphertext"]))
        inner: JsonDict = json.loads(opened.plaintext)
        if inner["room_id"] != event["room_id"]:
            raise ValueError("the event was encrypted for another room")
        return inner

    def outbound(self, room_id: str, devices: set[PeerDevice]) -> OutboundRoomKey:
        """Our key for a room; a new one as soon as a device that has it may read no more."""
        key = self._outbound.get(room_id)
        if key is None or not key.holders <= devices:
            key = self._outbound[room_id] = OutboundRoomKey()
        return key

    def as_to_device(self, room_id: str) -> JsonDict:
        """The content of an `m.room_key` that shares our key for a room."""
        session = self._outbound[room_id].session
        return {
            "algorithm": MEGOLM,
            "room_id": room_id,
            "session_id": session.session_id,
            "session_key": session.session_key.to_base64(),
        }

    def encrypt(self, room_id: str, kind: str, content: dict[str, Any]) -> JsonDict:
        """The content of an `m.room.encrypted` event; share the key first."""
        session = self._outbound[room_id].session
        inner = {"type": kind, "content": content, "room_id": room_id}
        return {
            "algorithm": MEGOLM,
            "sender_key": self.device.curve25519,
            "device_id": self.device.device_id,
            "session_id": session.session_id,
            "ciphertext": session.encrypt(json.dumps(inner).encode()).to_base64(),
        }
