"""For a homeserver: hands facts over to a bridge, once each, whatever dies in between.

It needs nothing of the bridge but its address, so that it can be copied out of the package.
"""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import aiohttp
from canonicaljson import encode_canonical_json
from signedjson.sign import sign_json
from yarl import URL

log = logging.getLogger(__name__)

_PATH: Final = "/_appservice_bridge/v1/facts/"
# With an errcode a no for good. What else is no 200 is an outage: a proxy that answers for a
# bridge that is down (404, 502), or a new key that the bridge does not know yet (401).
_FOR_GOOD: Final = frozenset({400, 403, 409, 413})


class BatchRefusedError(Exception):
    """The bridge refuses the batch whole, and will again; nothing of it is stored.

    Attributes:
        status: of the answer, with Matrix's `errcode`.
    """

    def __init__(self, status: int, errcode: str, message: str) -> None:
        super().__init__(f"{status} {errcode}: {message}")
        self.status = status
        self.errcode = errcode


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Facts that are signed and ready to go, for 29 days: then it is refused, unless it was taken.

    Whoever must not lose them when it dies itself stores both, and sends them again: under this
    id and with these bytes they are taken once.
    """

    batch_id: str
    body: bytes = field(repr=False)


def sign_batch(
    facts: Sequence[Mapping[str, Any]],
    *,
    origin: str,
    signing_key: Any,
    batch_id: str = "",
    origin_server_ts: int | None = None,
) -> Batch:
    """Make a batch; without an id it gets a random one, without a time in ms it is of now.

    Raises:
        ValueError: a fact holds what canonical JSON has no form for: NaN, a lone surrogate.
    """
    batch_id = batch_id or secrets.token_urlsafe(16)
    now_ms = int(time.time() * 1000)
    batch = {
        "origin": origin,
        "origin_server_ts": now_ms if origin_server_ts is None else origin_server_ts,
        "batch_id": batch_id,
        "facts": list(facts),
    }
    return Batch(
        batch_id=batch_id, body=encode_canonical_json(sign_json(batch, origin, signing_key))
    )


class IngestClient:
    """Sends batches to one bridge; each until it is answered.

    Order holds between what is sent one after the other, not between what is sent at once.

    Attributes:
        longest_rest_seconds: between two tries; the first rest is a quarter of a second.
        timeout_seconds: of one try.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        relay_url: str,
        *,
        origin: str,
        signing_key: Any,
        longest_rest_seconds: float = 30.0,
        timeout_seconds: float = 60.0,
    ) -> None:
        self._session = session
        self._base_url = relay_url.rstrip("/") + _PATH
        self._origin = origin
        self._signing_key = signing_key
        self._longest_rest_seconds = longest_rest_seconds
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)

    async def send(self, facts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Send facts as one batch; returns a verdict for each. Raises: as `send_batch`."""
        batch = sign_batch(facts, origin=self._origin, signing_key=self._signing_key)
        return await self.send_batch(batch)

    async def send_batch(self, batch: Batch) -> list[dict[str, Any]]:
        """Send a batch until it is answered; returns a verdict for each fact, in order.

        Raises:
            BatchRefusedError: it is refused whole.
        """
        tries = 0
        while (results := await self._try(batch)) is None:
            rest = min(self._longest_rest_seconds, 0.25 * 2 ** min(tries, 20))
            await asyncio.sleep(rest * random.uniform(0.8, 1.0))  # noqa: S311 - only jitter
            tries += 1
        return results

    async def _try(self, batch: Batch) -> list[dict[str, Any]] | None:
        """The verdicts; None if it is to be sent again, whether it was stored or not."""
        url = URL(self._base_url + quote(batch.batch_id, safe=""), encoded=True)
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.put(
                url, data=batch.body, headers=headers, timeout=self._timeout, allow_redirects=False
            ) as response:
                status, answer = response.status, await _json(response)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            log.info("batch %s: %s, again", batch.batch_id, type(error).__name__)
            return None
        results = answer.get("results")
        if status == 200 and isinstance(results, list):
            return results
        errcode = answer.get("errcode")
        if status in _FOR_GOOD and isinstance(errcode, str):
            raise BatchRefusedError(status, errcode, str(answer.get("error", "")))
        log.warning("batch %s: status %s, %s, again", batch.batch_id, status, errcode)
        return None


async def _json(response: aiohttp.ClientResponse) -> dict[str, Any]:
    try:
        answer = await response.json(content_type=None)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
