"""A person with an ordinary encrypted client (matrix-nio) on the homeserver of the stage."""

import asyncio
import secrets
import uuid
from typing import Any, Final
from urllib.parse import quote

import nio

from appservice_bridge.dev.person import Person
from appservice_bridge.dev.synapse_users import register_user
from appservice_bridge.testing.background import BackgroundLoop
from appservice_bridge.testing.person_store import ONE_TIME_KEYS, PersonStore
from appservice_bridge.testing.seen import JsonDict
from appservice_bridge.testing.stage import Stage

CLIENT: Final = "/_matrix/client/v3"
PATIENCE_SECONDS: Final = 30.0


class HomeserverRefusedError(Exception):
    """The homeserver answered a call of the person's with an error."""

    def __init__(self, path: str, status: int, errcode: str) -> None:
        super().__init__(f"the homeserver answered {status} {errcode} to {path}")
        self.status = status
        self.errcode = errcode


class MatrixUser:
    """Someone who is logged in with one device, whose keys are published.

    Attributes:
        password: with it another client may log in as the same user.
        client: nio's, which belongs to the stage's loop: for those who know.
    """

    def __init__(
        self, stage: Stage, loop: BackgroundLoop, account: dict[str, Any], password: str
    ) -> None:
        self._stage = stage
        self._loop = loop
        self._account = account
        self.password = password
        config = nio.AsyncClientConfig(
            encryption_enabled=True, max_limit_exceeded=0, store=PersonStore
        )
        self.client: Any = nio.AsyncClient(
            stage.stack.synapse.url, self.user_id, store_path="in memory", config=config
        )
        self._person = Person(self.client, presence="offline")

    @classmethod
    async def made(cls, stage: Stage, loop: BackgroundLoop, name: str) -> "MatrixUser":
        """Register somebody new, and publish the keys that others need to write to them."""
        stage.users += 1
        password = secrets.token_urlsafe(12)
        account = await register_user(
            stage.stack.synapse.url,
            shared_secret=stage.directory.secrets()["registration_shared_secret"],
            localpart=f"{name}-{stage.users}",
            password=password,
            http=stage.http,
        )
        user = cls(stage, loop, account, password)
        user.client.restore_login(user.user_id, user.device_id, user.access_token)
        await user.publish_keys()
        return user

    async def publish_keys(self) -> None:
        """Device keys and one-time keys."""
        await self._call("POST", "/keys/upload", self.client.olm.share_keys())
        self.client.olm.handle_response(nio.KeysUploadResponse(0, ONE_TIME_KEYS))

    @property
    def user_id(self) -> str:
        """Who it is; the name that was asked for, and a number."""
        return str(self._account["user_id"])

    @property
    def device_id(self) -> str:
        """The client's device."""
        return str(self._account["device_id"])

    @property
    def access_token(self) -> str:
        """For calls of your own."""
        return str(self._account["access_token"])

    async def make_encrypted_room(self, invite: str) -> str:
        """Create a room with encryption from its first event, and invite someone; its id."""
        return str(await self._within(PATIENCE_SECONDS, self._person.make_encrypted_room(invite)))

    async def see_join(
        self, room_id: str, user_id: str, *, within: float = PATIENCE_SECONDS
    ) -> None:
        """Wait until somebody has joined."""
        await self._within(within, self._person.see_join(room_id, user_id))

    async def say(self, room_id: str, text: str) -> None:
        """Send a message, encrypted for every device in the room; each then has the room key."""
        await self._within(PATIENCE_SECONDS, self._person.say(room_id, text))

    async def hear(
        self, room_id: str, sender: str, text: str, *, within: float = PATIENCE_SECONDS
    ) -> None:
        """Wait for a text that was encrypted and that this device could open.

        Raises:
            AssertionError: it was not heard in time.
        """
        __tracebackhide__ = True
        await self._within(within, self._person.hear(room_id, sender, text))

    async def send_to_device(
        self, user_id: str, device_id: str, type: str, content: JsonDict
    ) -> None:
        """Send one to-device message, as it is, to one device (`*`: all of the user's)."""
        path = f"/sendToDevice/{quote(type)}/{uuid.uuid4().hex}"
        await self.call("PUT", path, {"messages": {user_id: {device_id: content}}})

    async def call(self, method: str, path: str, body: JsonDict | None = None) -> JsonDict:
        """One request below `/_matrix/client/v3`.

        Raises:
            HomeserverRefusedError: anything but 200.
        """
        return await self._loop.call(self._call(method, path, body))

    async def closed(self) -> None:
        """Let go of the connections; on the stage's loop."""
        await self.client.close()

    async def _call(self, method: str, path: str, body: JsonDict | None) -> JsonDict:
        headers = {"Authorization": f"Bearer {self.access_token}"}
        url = f"{self._stage.stack.synapse.url}{CLIENT}{path}"
        async with self._stage.http.request(method, url, json=body, headers=headers) as response:
            answer: JsonDict = await response.json()
            if response.status != 200:
                raise HomeserverRefusedError(path, response.status, answer.get("errcode", ""))
            return answer

    async def _within(self, seconds: float, work: Any) -> Any:
        __tracebackhide__ = True
        try:
            return await self._loop.call(_in_time(seconds, work))
        except TimeoutError:
            logs = self._stage.logs()["bridge"].parent
            raise AssertionError(
                f"{self.user_id} waited {seconds:g} s in vain; the logs are in {logs}"
            ) from None


async def _in_time(seconds: float, work: Any) -> Any:
    async with asyncio.timeout(seconds):
        return await work
