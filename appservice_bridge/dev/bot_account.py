"""What a bot asks of the homeserver, as one user and one device of its appservice."""

import asyncio
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import aiohttp

from appservice_bridge.dev.olm_device import JsonDict
from appservice_bridge.domain.errors import BridgeError

TRIES: Final = 60
INTERNAL_ERROR: Final = 500
CLIENT: Final = "/_matrix/client/v3"


class HomeserverRefusedError(BridgeError):
    """The homeserver answered with an error; below 500 a repetition is answered the same."""

    def __init__(self, path: str, status: int, errcode: str) -> None:
        super().__init__(f"the homeserver answered {status} {errcode} to {path}")
        self.status = status
        self.errcode = errcode


@dataclass(frozen=True, slots=True, kw_only=True)
class BotAccount:
    """A user in the namespace of an appservice, and a device that the appservice made for it."""

    http: aiohttp.ClientSession
    homeserver_url: str
    as_token: str
    user_id: str
    device_id: str

    async def register(self) -> None:
        """Make the user, unless it is there, and the device (MSC4190)."""
        localpart = self.user_id[1:].partition(":")[0]
        account = {
            "type": "m.login.application_service",
            "username": localpart,
            "inhibit_login": True,
        }
        try:
            await self._call("POST", "/register", account, as_device=False)
        except HomeserverRefusedError as refused:
            if refused.errcode != "M_USER_IN_USE":
                raise
        device = {"display_name": "Echo bot"}
        await self._call("PUT", f"/devices/{quote(self.device_id)}", device, as_device=False)

    async def remove_other_devices(self) -> None:
        """Forget devices of earlier runs, whose keys are gone."""
        answer = await self._call("GET", "/devices", None)
        others = {device["device_id"] for device in answer["devices"]} - {self.device_id}
        for device_id in others:
            await self._call("DELETE", f"/devices/{quote(device_id, safe='')}", {})

    async def upload_keys(self, keys: JsonDict) -> None:
        """Publish device, one-time and fallback keys."""
        await self._call("POST", "/keys/upload", keys)

    async def query_keys(self, users: Iterable[str]) -> dict[str, JsonDict]:
        """The devices of users: user id, device id, keys."""
        answer = await self._call(
            "POST", "/keys/query", {"device_keys": {user: [] for user in users}}
        )
        devices: dict[str, JsonDict] = answer.get("device_keys", {})
        return devices

    async def claim_keys(self, wanted: dict[str, dict[str, str]]) -> dict[str, JsonDict]:
        """One one-time key per device: user id, device id, key id, key."""
        answer = await self._call("POST", "/keys/claim", {"one_time_keys": wanted})
        claimed: dict[str, JsonDict] = answer.get("one_time_keys", {})
        return claimed

    async def send_to_device(self, kind: str, messages: dict[str, JsonDict]) -> None:
        """Send one content per device: user id, device id, content."""
        path = f"/sendToDevice/{quote(kind)}/{uuid.uuid4().hex}"
        await self._call("PUT", path, {"messages": messages})

    async def join(self, room_id: str) -> None:
        """Accept an invitation."""
        await self._call("POST", f"/join/{quote(room_id)}", {})

    async def joined_members(self, room_id: str) -> list[str]:
        """Everyone in the room."""
        answer = await self._call("GET", f"/rooms/{quote(room_id)}/joined_members", None)
        return list(answer["joined"])

    async def send_event(self, room_id: str, kind: str, content: JsonDict) -> None:
        """Send an event into a room."""
        path = f"/rooms/{quote(room_id)}/send/{quote(kind)}/{uuid.uuid4().hex}"
        await self._call("PUT", path, content)

    async def _call(
        self, method: str, path: str, body: JsonDict | None, *, as_device: bool = True
    ) -> JsonDict:
        """One request; a homeserver that is down or in trouble is asked again for a minute."""
        for _ in range(TRIES):
            try:
                return await self._call_once(method, path, body, as_device=as_device)
            except aiohttp.ClientConnectionError:
                pass
            except HomeserverRefusedError as refused:
                if refused.status < INTERNAL_ERROR:
                    raise
            await asyncio.sleep(1)
        return await self._call_once(method, path, body, as_device=as_device)

    async def _call_once(
        self, method: str, path: str, body: JsonDict | None, *, as_device: bool
    ) -> JsonDict:
        who = {"user_id": self.user_id}
        if as_device:
            who["device_id"] = self.device_id
        async with self.http.request(
            method,
            f"{self.homeserver_url}{CLIENT}{path}",
            params=who,
            json=body,
            headers={"Authorization": f"Bearer {self.as_token}"},
        ) as response:
            answer: dict[str, Any] = await response.json()
            if response.status >= 400:
                raise HomeserverRefusedError(path, response.status, answer.get("errcode", ""))
            return answer
