"""Another homeserver, as far as one of ours can tell: a name and a key that signs requests."""

import json
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
from aiohttp import web
from signedjson.key import encode_verify_key_base64, generate_signing_key, get_verify_key
from signedjson.sign import sign_json
from synapse.api.room_versions import KNOWN_ROOM_VERSIONS
from synapse.crypto.event_signing import add_hashes_and_signatures
from yarl import URL

from tests.support.certificate import self_signed
from tests.support.homeserver import SERVER, Homeserver

DAY_MS: Final = 86_400_000
FEDERATION: Final = "/_matrix/federation"
STORE_KEY: Final = """
insert into server_keys_json
    (server_name, key_id, from_server, ts_added_ms, ts_valid_until_ms, key_json)
values (%s, %s, %s, %s, %s, %s) on conflict do nothing
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteServer:
    """It sends; it listens within `listening`.

    Attributes:
        name: where it would listen, as `127.0.0.1:port`.
        devices: what it says of its users' devices, by user; the stream's position with them.
    """

    name: str
    key: Any = field(default_factory=lambda: generate_signing_key("1"))
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)

    def introduce_to(self, of: Homeserver) -> None:
        """Put the key where the homeserver keeps those that it has fetched."""
        now_ms = int(time.time() * 1000)
        public = encode_verify_key_base64(get_verify_key(self.key))
        key_id = f"{self.key.alg}:{self.key.version}"
        response = json.dumps({"verify_keys": {key_id: {"key": public}}}).encode()
        of.execute(STORE_KEY, self.name, key_id, self.name, now_ms, now_ms + DAY_MS, response)

    async def send_to_device(
        self, of: Homeserver, user_id: str, device_id: str, content: dict[str, Any]
    ) -> None:
        """One to-device message, in a federation transaction of its own.

        Raises:
            aiohttp.ClientResponseError: it was not accepted.
        """
        edu = {
            "sender": f"@someone:{self.name}",
            "type": "m.test",
            "message_id": uuid.uuid4().hex,
            "messages": {user_id: {device_id: content}},
        }
        await self._send_edu(of, "m.direct_to_device", edu)

    async def change_device(self, of: Homeserver, user_id: str, device_id: str) -> None:
        """A user of this server has another device; the homeserver is told, and may ask for it."""
        known = self.devices.setdefault(user_id, {"stream_id": 0, "devices": []})
        known["stream_id"] += 1
        keys = {"user_id": user_id, "device_id": device_id, "algorithms": [], "keys": {}}
        known["devices"].append({"device_id": device_id, "keys": keys})
        edu = {
            "user_id": user_id,
            "device_id": device_id,
            "stream_id": known["stream_id"],
            "keys": keys,
        }
        await self._send_edu(of, "m.device_list_update", edu)

    async def become(self, of: Homeserver, user_id: str, room_id: str, membership: str) -> None:
        """Let a user of this server `join` or `leave` a room of the homeserver's.

        Raises:
            aiohttp.ClientResponseError: it was not accepted.
        """
        where = f"{quote(room_id, safe='')}/{quote(user_id, safe='')}"
        versions = "&".join(f"ver={version}" for version in KNOWN_ROOM_VERSIONS)
        path = f"{FEDERATION}/v1/make_{membership}/{where}?{versions}"
        made = await self._call(of, "GET", path)
        event = made["event"] | {"origin_server_ts": int(time.time() * 1000)}
        version = KNOWN_ROOM_VERSIONS[made["room_version"]]
        add_hashes_and_signatures(version, event, self.name, self.key)
        path = f"{FEDERATION}/v2/send_{membership}/{quote(room_id, safe='')}/{uuid.uuid4().hex}"
        await self._call(of, "PUT", path, event)

    @asynccontextmanager
    async def listening(self, directory: Path) -> AsyncIterator[None]:
        """Take what the homeserver sends, and say which devices there are."""
        app = web.Application(client_max_size=2**26)
        app.router.add_get(FEDERATION + "/v1/user/devices/{user_id}", self._devices)
        app.router.add_put(FEDERATION + "/v1/send/{txn_id}", self._take)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self_signed(directory))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        host, port = self.name.split(":")
        await web.TCPSite(runner, host, int(port), ssl_context=context).start()
        try:
            yield
        finally:
            await runner.cleanup()

    async def _devices(self, request: web.Request) -> web.Response:
        user_id = request.match_info["user_id"]
        known = self.devices.get(user_id, {"stream_id": 0, "devices": []})
        return web.json_response({"user_id": user_id} | known)

    async def _take(self, _request: web.Request) -> web.Response:
        return web.json_response({"pdus": {}})

    async def _send_edu(self, of: Homeserver, kind: str, edu: Mapping[str, Any]) -> None:
        body = {
            "origin": self.name,
            "origin_server_ts": int(time.time() * 1000),
            "pdus": [],
            "edus": [{"edu_type": kind, "content": edu}],
        }
        await self._call(of, "PUT", f"{FEDERATION}/v1/send/{uuid.uuid4().hex}", body)

    async def _call(
        self, of: Homeserver, method: str, path: str, body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        url = URL(of.url + path, encoded=True)
        headers = self._signed(method, path, body)
        async with (
            aiohttp.ClientSession(headers=headers, raise_for_status=True) as http,
            http.request(method, url, json=body) as response,
        ):
            answer: dict[str, Any] = await response.json()
            return answer

    def _signed(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, str]:
        request: dict[str, Any] = {"method": method, "uri": path}
        request |= {"origin": self.name, "destination": SERVER}
        if body is not None:
            request["content"] = body
        [(key_id, signature)] = sign_json(request, self.name, self.key)["signatures"][
            self.name
        ].items()
        words = {"origin": self.name, "destination": SERVER, "key": key_id, "sig": signature}
        return {"Authorization": "X-Matrix " + ",".join(f'{k}="{v}"' for k, v in words.items())}
