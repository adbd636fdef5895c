"""Another homeserver, as far as one of ours can tell: a name and a key that signs requests."""

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from signedjson.key import encode_verify_key_base64, generate_signing_key, get_verify_key
from signedjson.sign import sign_json

from tests.support.homeserver import SERVER, Homeserver

DAY_MS: Final = 86_400_000
STORE_KEY: Final = """
insert into server_keys_json
    (server_name, key_id, from_server, ts_added_ms, ts_valid_until_ms, key_json)
values (%s, %s, %s, %s, %s, %s)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteServer:
    """It sends; it does not listen."""

    name: str
    key: Any = field(default_factory=lambda: generate_signing_key("1"))

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
        body = {
            "origin": self.name,
            "origin_server_ts": int(time.time() * 1000),
            "pdus": [],
            "edus": [{"edu_type": "m.direct_to_device", "content": edu}],
        }
        path = f"/_matrix/federation/v1/send/{uuid.uuid4().hex}"
        async with (
            aiohttp.ClientSession(headers=self._signed("PUT", path, body)) as http,
            http.put(of.url + path, json=body) as response,
        ):
            response.raise_for_status()

    def _signed(self, method: str, path: str, body: dict[str, Any]) -> dict[str, str]:
        request = {
            "method": method,
            "uri": path,
            "origin": self.name,
            "destination": SERVER,
            "content": body,
        }
        [(key_id, signature)] = sign_json(request, self.name, self.key)["signatures"][
            self.name
        ].items()
        words = {"origin": self.name, "destination": SERVER, "key": key_id, "sig": signature}
        return {"Authorization": "X-Matrix " + ",".join(f'{k}="{v}"' for k, v in words.items())}
