"""An ordinary user with an ordinary encrypted client (matrix-nio)."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

import nio

from appservice_bridge.domain.errors import BridgeError

SYNC_MILLISECONDS: Final = 2_000
Answer = TypeVar("Answer")


class PersonRefusedError(BridgeError):
    """The homeserver refused what the person wanted; `answer` says why."""

    def __init__(self, answer: object) -> None:
        super().__init__(f"the homeserver refused: {answer}")
        self.answer = answer


@asynccontextmanager
async def person(homeserver_url: str, user_id: str, password: str) -> AsyncIterator["Person"]:
    """Log in with a device of its own, whose keys are published; log out at the end.

    Raises:
        PersonRefusedError: the password is wrong, or the homeserver refuses the keys.
    """
    config = nio.AsyncClientConfig(encryption_enabled=True, max_limit_exceeded=0)
    with TemporaryDirectory(prefix="person-") as store:
        client = nio.AsyncClient(homeserver_url, user_id, store_path=store, config=config)
        try:
            _require(nio.LoginResponse, await client.login(password, device_name="a person"))
            _require(nio.KeysUploadResponse, await client.keys_upload())
            _require(nio.SyncResponse, await client.sync(timeout=0, full_state=True))
            yield Person(client)
            await client.logout()
        finally:
            await client.close()


@dataclass(slots=True)
class Person:
    """Someone who is logged in.

    Attributes:
        presence: what a sync says that they are; None: online.
    """

    client: Any
    presence: str | None = None

    async def make_encrypted_room(self, invite: str) -> str:
        """Create a room with encryption from its first event; the room's id."""
        answer = await self.client.room_create(
            invite=[invite],
            is_direct=True,
            initial_state=[nio.EnableEncryptionBuilder().as_dict()],
        )
        return str(_require(nio.RoomCreateResponse, answer).room_id)

    async def see_join(self, room_id: str, user_id: str) -> None:
        """Wait until somebody has joined."""
        while not self._has_joined(room_id, user_id):
            await self._sync()

    async def say(self, room_id: str, text: str) -> None:
        """Send a message, encrypted for every device in the room."""
        answer = await self.client.room_send(
            room_id,
            "m.room.message",
            {"msgtype": "m.text", "body": text},
            ignore_unverified_devices=True,
        )
        _require(nio.RoomSendResponse, answer)

    async def hear(self, room_id: str, sender: str, text: str) -> None:
        """Wait for a text from somebody that was encrypted and that this device could open."""

        def is_it(event: Any) -> bool:
            return bool(
                isinstance(event, nio.RoomMessageText)
                and event.decrypted
                and (event.sender, event.body) == (sender, text)
            )

        await self._see_event(room_id, is_it)

    async def _see_event(self, room_id: str, is_it: Callable[[Any], bool]) -> None:
        while True:
            joined = (await self._sync()).rooms.join
            if room_id in joined and any(map(is_it, joined[room_id].timeline.events)):
                return

    async def _sync(self) -> Any:
        """One sync, and the key requests that it makes due."""
        answer = await self.client.sync(timeout=SYNC_MILLISECONDS, set_presence=self.presence)
        if not isinstance(answer, nio.SyncResponse):  # the homeserver is restarting
            await asyncio.sleep(0.5)
            return await self._sync()
        if self.client.should_query_keys:
            await self.client.keys_query()
        if self.client.should_upload_keys:
            await self.client.keys_upload()
        return answer

    def _has_joined(self, room_id: str, user_id: str) -> bool:
        room = self.client.rooms.get(room_id)
        return room is not None and user_id in room.users and user_id not in room.invited_users


def _require(kind: type[Answer], answer: object) -> Answer:
    if not isinstance(answer, kind):
        raise PersonRefusedError(answer)
    return answer
