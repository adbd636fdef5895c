"""One attempt over HTTP: a PUT, and what its answer means."""

import asyncio
import errno
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import quote

import aiohttp
import orjson

from appservice_bridge.domain.outcome import Acked, Outcome, Refused, Unreachable
from appservice_bridge.domain.policy import DeliveryPolicy
from appservice_bridge.domain.registration import Registration

V1_PATH: Final = "/_matrix/app/v1/transactions/"
LEGACY_PATH: Final = "/transactions/"
REPROBE_SECONDS: Final = 600.0  # an appservice that was upgraded gets its v1 path back
_ANSWER_BYTES: Final = 16_384
_BODY_SECONDS: Final = 1.0  # the status is the answer; nobody waits long for the rest
_ERRCODE: Final = re.compile(r"[A-Z][A-Z0-9_.]{1,63}")


class HttpSender:
    """Sends transactions to one appservice; redirects are never followed."""

    def __init__(
        self, session: aiohttp.ClientSession, registration: Registration, policy: DeliveryPolicy
    ) -> None:
        self._session = session
        self._registration = registration
        self._timeout = aiohttp.ClientTimeout(total=policy.timeout_seconds)
        self._legacy_until = 0.0

    async def send(self, txn_id: str, body: bytes, *, now: float) -> Outcome:
        """Send once; on the legacy path, too, where v1 is unrecognized. `now` is monotonic."""
        if now < self._legacy_until:
            return await self._put(LEGACY_PATH, txn_id, body)
        outcome = await self._put(V1_PATH, txn_id, body)
        if not _unrecognized(outcome):
            return outcome
        legacy = await self._put(LEGACY_PATH, txn_id, body)
        if isinstance(legacy, Acked):
            self._legacy_until = now + REPROBE_SECONDS
        return legacy

    async def _put(self, path: str, txn_id: str, body: bytes) -> Outcome:
        url = f"{self._registration.url}{path}{quote(txn_id, safe='')}"
        headers = {
            "Authorization": f"Bearer {self._registration.hs_token}",
            "Content-Type": "application/json",
        }
        try:
            async with self._session.put(
                url, data=body, headers=headers, allow_redirects=False, timeout=self._timeout
            ) as response:
                return await _read(response)
        except TimeoutError:
            return Unreachable(reason="timeout")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Unreachable(reason=_reason(error))


async def _read(response: aiohttp.ClientResponse) -> Outcome:
    """Any 2xx is an ack, whatever follows; of a refusal no more than its code is kept."""
    body = await _beginning(response)
    if 200 <= response.status < 300:
        return Acked(status=response.status)
    return Refused(
        status=response.status,
        errcode=_errcode(body),
        retry_after_seconds=retry_after(response.headers.get("Retry-After")),
    )


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """The body's beginning; read to its end, where that is near, so that the connection stays."""
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            return await response.content.readexactly(_ANSWER_BYTES)
    except asyncio.IncompleteReadError as whole:
        return whole.partial
    except (TimeoutError, aiohttp.ClientError, OSError):
        return b""


def _errcode(answer: bytes) -> str | None:
    try:
        code = orjson.loads(answer)["errcode"]
    except (ValueError, TypeError, KeyError):
        return None
    return code if isinstance(code, str) and _ERRCODE.fullmatch(code) else None


def _unrecognized(outcome: Outcome) -> bool:
    return (
        isinstance(outcome, Refused)
        and outcome.status in (404, 405)
        and outcome.errcode == "M_UNRECOGNIZED"
    )


def retry_after(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date; None if unreadable."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        return (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None


def _reason(error: Exception) -> str:
    """A word for the log; the error's own text may hold the url, and with it a secret."""
    match error:
        case aiohttp.ServerDisconnectedError():
            return "disconnected"
        case aiohttp.ClientConnectorDNSError():
            return "dns"
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            return "tls"
        case ConnectionRefusedError():
            return "connection_refused"
        case aiohttp.ClientConnectorError():
            return (
                "connection_refused"
                if error.os_error.errno == errno.ECONNREFUSED
                else "connection_failed"
            )
        case ConnectionResetError() | BrokenPipeError():
            return "reset"
        case aiohttp.InvalidURL():
            return "invalid_url"
        case _:
            return type(error).__name__
