"""One attempt over HTTP: a PUT, and what its answer means; and a ping."""

import asyncio
import errno
import re
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeGuard
from urllib.parse import quote

import aiohttp
import orjson
from aiohttp.abc import AbstractStreamWriter

from appservice_bridge.delivery.ping import Answered, ping
from appservice_bridge.domain.outcome import (
    ANSWER_CHARACTERS,
    Acked,
    Outcome,
    Refused,
    Unreachable,
)
from appservice_bridge.domain.policy import DeliveryPolicy
from appservice_bridge.domain.registration import Registration

V1_PATH: Final = "/_matrix/app/v1/transactions/"
LEGACY_PATH: Final = "/transactions/"
REPROBE_SECONDS: Final = 600.0  # an appservice that was upgraded gets its v1 path back
_ANSWER_BYTES: Final = 16_384
_BODY_SECONDS: Final = 1.0  # the status is the answer; nobody waits long for the rest
_ERRCODE: Final = re.compile(r"[A-Z][A-Z0-9_.]{1,63}")


class _CountedBody(aiohttp.BytesPayload):
    """A body that knows how often it was sent.

    aiohttp sends a PUT again by itself where a connection that was kept alive turns out to be
    closed. Whether the first copy was processed nobody knows, whatever the answer to the second.
    """

    times_sent = 0

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        self.times_sent += 1
        await super().write_with_length(writer, content_length)


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
        """Send once; on the other path, too, where one is unknown there. `now` is monotonic."""
        if now < self._legacy_until:
            outcome = await self._put(LEGACY_PATH, txn_id, body)
            if not _not_found(outcome):
                return outcome
            self._legacy_until = 0.0  # it was upgraded, and has its old path no more
            return await self._put(V1_PATH, txn_id, body)
        outcome = await self._put(V1_PATH, txn_id, body)
        if not _unrecognized(outcome):
            return outcome
        legacy = await self._put(LEGACY_PATH, txn_id, body)
        if isinstance(legacy, Acked):
            self._legacy_until = now + REPROBE_SECONDS
        return legacy

    async def ping(self) -> bool:
        """Whether the appservice answers a ping of ours with 2xx."""
        total = self._timeout.total or 0.0
        answered = await ping(self._session, self._registration, timeout_seconds=total)
        return isinstance(answered, Answered)

    async def _put(self, path: str, txn_id: str, body: bytes) -> Outcome:
        url = f"{self._registration.url}{path}{quote(txn_id, safe='')}"
        counted = _CountedBody(body)
        try:
            async with self._session.put(
                url,
                data=counted,
                headers=self._headers(),
                allow_redirects=False,
                timeout=self._timeout,
            ) as response:
                outcome = await _read(response)
        except TimeoutError:
            return Unreachable(reason="timeout", unsent=not counted.times_sent)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Unreachable(reason=_reason(error), unsent=not counted.times_sent)
        if isinstance(outcome, Refused) and counted.times_sent > 1:
            return replace(outcome, sent_before=True)
        return outcome

    def _headers(self) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self._registration.hs_token}",
            "Content-Type": "application/json",
        }


async def _read(response: aiohttp.ClientResponse) -> Outcome:
    """Any 2xx is an ack, whatever follows; of a refusal the code and the beginning are kept."""
    body = await _beginning(response)
    if 200 <= response.status < 300:
        return Acked(status=response.status)
    return Refused(
        status=response.status,
        errcode=_errcode(body),
        retry_after_seconds=retry_after(response.headers.get("Retry-After")),
        answer=_quotable(body),
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


def _quotable(answer: bytes) -> str:
    """As text that Postgres can store."""
    text = answer[: 4 * ANSWER_CHARACTERS].decode("utf-8", "replace")
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")[:ANSWER_CHARACTERS]


def _errcode(answer: bytes) -> str | None:
    try:
        code = orjson.loads(answer)["errcode"]
    except (ValueError, TypeError, KeyError):
        return None
    return code if isinstance(code, str) and _ERRCODE.fullmatch(code) else None


def _not_found(outcome: Outcome) -> TypeGuard[Refused]:
    """No Matrix error is asked for: an old path may be gone without a word."""
    return isinstance(outcome, Refused) and outcome.status in (404, 405)


def _unrecognized(outcome: Outcome) -> bool:
    return _not_found(outcome) and outcome.errcode == "M_UNRECOGNIZED"


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
