"""The keys that the homeserver signs with: those of the config, or those that it publishes."""

import asyncio
import json
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import aiohttp
import structlog
from signedjson.key import decode_verify_key_bytes
from signedjson.sign import SignatureVerifyException, verify_signed_json
from unpaddedbase64 import decode_base64
from yarl import URL

from appservice_bridge.domain.errors import BridgeError

log = structlog.get_logger(__name__)

_PATH: Final = "/_matrix/key/v2/server"
_LONGEST_SECONDS: Final = 7 * 86_400.0  # whatever valid_until_ts says, as the specification wants
_UNKNOWN_SECONDS: Final = 60.0  # between two questions that an unknown key id gives rise to
_FAILED_SECONDS: Final = 1.0  # between two questions while there is no answer
_MOST_BYTES: Final = 65_536
_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)


class KeysUnavailableError(BridgeError):
    """The homeserver's keys are not known now; ask again later."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the homeserver's keys are not known: {reason}")
        self.reason = reason


class HomeserverKeys:
    """Verify keys by id; they are asked for when they are first needed, and again when too old.

    Keys that the homeserver calls old are not taken: they were for what it signed back then.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        homeserver_url: str,
        server_name: str,
        given: Mapping[str, str],
    ) -> None:
        self._session = session
        self._url = URL(homeserver_url.rstrip("/") + _PATH, encoded=True)
        self._server_name = server_name
        self._fixed = bool(given)
        self._keys = {key_id: _verify_key(key_id, key) for key_id, key in given.items()}
        self._valid_until = float("inf") if given else 0.0  # in wall clock time, as the answer's
        self._unknown_at = 0.0  # on the loop's clock: when an unknown key id is asked for again
        self._failed_at = 0.0  # when it is asked again after it gave no answer
        self._asking = asyncio.Lock()

    async def find(self, key_ids: Iterable[str]) -> dict[str, Any]:
        """The keys among these that are known.

        Raises:
            KeysUnavailableError: none are known at all, and the homeserver does not say them.
        """
        wanted = list(key_ids)
        if not self._fixed:
            async with self._asking:
                await self._refresh(wanted)
        return {key_id: self._keys[key_id] for key_id in wanted if key_id in self._keys}

    async def _refresh(self, wanted: list[str]) -> None:
        clock = asyncio.get_running_loop().time
        fresh = time.time() < self._valid_until
        if fresh and (clock() < self._unknown_at or self._knows_one_of(wanted)):
            return
        if clock() < self._failed_at:
            raise KeysUnavailableError("it was asked a moment ago")
        self._unknown_at = clock() + _UNKNOWN_SECONDS
        try:
            self._keys, self._valid_until = await self._published()
        except KeysUnavailableError as error:
            self._failed_at = clock() + _FAILED_SECONDS
            log.warning("homeserver.keys_not_known", reason=error.reason)
            if not fresh:
                raise

    def _knows_one_of(self, wanted: list[str]) -> bool:
        return any(key_id in self._keys for key_id in wanted)

    async def _published(self) -> tuple[dict[str, Any], float]:
        try:
            async with self._session.get(
                self._url, timeout=_TIMEOUT, allow_redirects=False
            ) as response:
                status, body = response.status, await _at_most(response, _MOST_BYTES)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise KeysUnavailableError(type(error).__name__) from None
        if status != 200:
            raise KeysUnavailableError(f"status {status}")
        try:
            return published_keys(json.loads(body), self._server_name, now=time.time())
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise KeysUnavailableError("its answer is malformed") from None


def published_keys(
    document: dict[str, Any], server_name: str, *, now: float
) -> tuple[dict[str, Any], float]:
    """The keys in a homeserver's answer that signed it, and until when they hold, in wall time.

    Raises:
        KeysUnavailableError: it is another server's, it is too old, or no signature holds.
        ValueError, TypeError, KeyError, AttributeError: it is malformed.
    """
    if document["server_name"] != server_name:
        raise KeysUnavailableError("it is another server")
    valid_until = min(document["valid_until_ts"] / 1000, now + _LONGEST_SECONDS)
    if valid_until <= now:
        raise KeysUnavailableError("valid_until_ts has passed")
    keys = {}
    for key_id, entry in document["verify_keys"].items():
        if key_id.startswith("ed25519:"):
            key = _verify_key(key_id, entry["key"])
            if _signed_by(document, server_name, key):
                keys[key_id] = key
    if not keys:
        raise KeysUnavailableError("no key signed its answer")
    return keys, valid_until


def _signed_by(document: dict[str, Any], server_name: str, key: Any) -> bool:
    try:
        verify_signed_json(document, server_name, key)
    except SignatureVerifyException:
        return False
    return True


def _verify_key(key_id: str, key: str) -> Any:
    return decode_verify_key_bytes(key_id, decode_base64(key))


async def _at_most(response: aiohttp.ClientResponse, limit: int) -> bytes:
    try:
        await response.content.readexactly(limit + 1)
    except asyncio.IncompleteReadError as ended:
        return ended.partial
    raise KeysUnavailableError(f"its answer is over {limit} bytes")
