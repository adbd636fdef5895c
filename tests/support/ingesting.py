"""A homeserver that is no Synapse: it signs batches of facts and hands them over."""

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
from signedjson.key import decode_signing_key_base64, encode_verify_key_base64, get_verify_key
from unpaddedbase64 import encode_base64
from yarl import URL

from tests.support.appservice import Appservice, appservice
from tests.support.bridge import SERVER, Files, registration, worker, write_files

BOT: Final = "@b_1:example.org"
KEY_ID: Final = "ed25519:a_1"
KEY: Final = decode_signing_key_base64("ed25519", "a_1", encode_base64(b"k" * 32))
GENERIC: Final = {
    "kind": "generic",
    "verify_keys": {KEY_ID: encode_verify_key_base64(get_verify_key(KEY))},
}
_LAX: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def message(n: int = 1, **changes: Any) -> dict[str, Any]:
    """A to-device message for the bot's user."""
    return {
        "kind": "to_device",
        "to_user_id": BOT,
        "to_device_id": "DEV",
        "type": "m.test",
        "sender": "@alice:example.org",
        "content": {"n": n},
    } | changes


def now_ms() -> int:
    """The time as a batch gives it."""
    return int(time.time() * 1000)


def to_sign(batch: Mapping[str, Any]) -> bytes:
    """What docs/ingest.md wants signed, also of what canonical JSON has no form for."""
    kept = {name: value for name, value in batch.items() if name not in ("signatures", "unsigned")}
    return _LAX.encode(kept).encode(errors="backslashreplace")


def signed(batch: dict[str, Any], *, key: Any = KEY, key_id: str = KEY_ID) -> dict[str, Any]:
    """The batch with the homeserver's signature."""
    signature = encode_base64(key.sign(to_sign(batch)).signature)
    return batch | {"signatures": {batch.get("origin", SERVER): {key_id: signature}}}


def batch_of(batch_id: str, /, *facts: Any, **changes: Any) -> dict[str, Any]:
    """A batch that is not signed yet."""
    batch = {"origin": SERVER, "batch_id": batch_id, "facts": list(facts)}
    return batch | {"origin_server_ts": now_ms()} | changes


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a batch was answered."""

    status: int
    body: dict[str, Any]
    raw: bytes = field(repr=False)

    @property
    def results(self) -> list[dict[str, Any]]:
        assert self.status == 200, self.body
        found: list[dict[str, Any]] = self.body["results"]
        return found

    @property
    def refusal(self) -> tuple[int, str]:
        return self.status, self.body["errcode"]

    @property
    def verdicts(self) -> list[str]:
        """`accepted`, `dropped`, or the errcode, of each fact."""
        return [
            one.get("errcode") or ("dropped" if one.get("dropped") else one["status"])
            for one in self.results
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Puts batches to a relay."""

    session: aiohttp.ClientSession
    base_url: str

    async def put(self, batch_id: str, body: bytes, **headers: str) -> Taken:
        path = f"/_appservice_bridge/v1/facts/{quote(batch_id, safe='')}"
        url = URL(self.base_url + path, encoded=True)
        async with self.session.put(url, data=body, headers=headers) as response:
            raw = await response.read()
            return Taken(status=response.status, body=json.loads(raw), raw=raw)

    async def send(self, batch_id: str, /, *facts: Any, **changes: Any) -> Taken:
        """Sign these facts and put them."""
        batch = signed(batch_of(batch_id, *facts, **changes))
        return await self.put(batch_id, json.dumps(batch).encode())


@asynccontextmanager
async def sender(base_url: str) -> AsyncIterator[Sender]:
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        yield Sender(session=session, base_url=base_url)


def ingest_files(directory: Path, database: str, bots: Sequence[Any], **settings: Any) -> Files:
    """Config for a homeserver that hands its facts over."""
    return write_files(directory, database, bots, homeserver=GENERIC, **settings)


@asynccontextmanager
async def one_bot(
    directory: Path, database: str, **settings: Any
) -> AsyncIterator[tuple[Appservice, Sender]]:
    """A worker, a single appservice `bot` that owns @b_*, and the homeserver."""
    async with appservice() as bot:
        bots = [registration("bot", bot.url, users=["@b_.*"])]
        files = ingest_files(directory, database, bots, **settings)
        async with worker(files), sender(files.relay_url) as one:
            yield bot, one
