"""Queries of the homeserver that only the appservice can answer, asked with its own token."""

from typing import Final
from urllib.parse import quote, unquote

import aiohttp
import structlog
from aiohttp import web
from yarl import URL

from appservice_bridge.domain.registration import WEBSOCKET, Registration
from appservice_bridge.http.answers import error

log = structlog.get_logger(__name__)

TIMEOUT_SECONDS: Final = 30.0
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
_ASCII: Final = "".join(map(chr, range(0x21, 0x7F)))


class AnswerTooLargeError(aiohttp.ClientError):
    """The appservice's answer is more than the bridge keeps in memory."""


class PassThrough:
    """Asks the appservice what the homeserver asked the relay, and hands the answer back."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def ask(self, registration: Registration, request: web.Request) -> web.Response:
        """The appservice's answer; 502 if it cannot be reached, 504 if it does not answer."""
        if not has_url(registration):
            return error(404, "M_NOT_FOUND", "this appservice has no url to ask")
        body = await request.read()
        try:
            async with self._session.request(
                request.method,
                _target(registration, request),
                data=body or None,
                headers=_headers(registration, request),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
            ) as response:
                return await _handed_back(response)
        except TimeoutError:
            message = "the appservice did not answer in time"
            return _failed(registration, 504, "M_CONNECTION_TIMEOUT", message)
        except (aiohttp.ClientError, OSError, ValueError):
            message = "the appservice cannot be reached"
            return _failed(registration, 502, "M_CONNECTION_FAILED", message)


def has_url(registration: Registration) -> bool:
    """Whether there is somewhere to ask: who connects to us need not be reachable."""
    return registration.url is not None and registration.url != WEBSOCKET


async def _handed_back(response: aiohttp.ClientResponse) -> web.Response:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise AnswerTooLargeError
    kept = ("Content-Type",) if "Content-Type" in response.headers else ()
    headers = {name: response.headers[name] for name in kept}
    return web.Response(status=response.status, body=bytes(body), headers=headers)


def _failed(registration: Registration, status: int, errcode: str, message: str) -> web.Response:
    """Our own answer, with the code that the specification has for such a ping."""
    log.warning("query.failed", appservice=registration.id, status=status)
    return error(status, errcode, message)


def _target(registration: Registration, request: web.Request) -> URL:
    """The same path and query at the appservice's own url, as they were encoded, less the token."""
    path = request.rel_url.raw_path.split("/", 3)[3]  # behind '', 'appservice' and id
    parts = request.rel_url.raw_query_string.split("&")
    kept = "&".join(part for part in parts if unquote(part.split("=")[0]) != "access_token")
    target = f"{registration.url}/{path}" + (f"?{kept}" if kept else "")
    return URL(quote(target, safe=_ASCII), encoded=True)


def _headers(registration: Registration, request: web.Request) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {registration.hs_token}"}
    if request.body_exists:  # can_read_body is false as soon as the body was read
        headers["Content-Type"] = request.headers.get("Content-Type", "application/json")
    return headers
