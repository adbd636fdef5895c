"""Questions of the homeserver that only the appservice can answer, asked with its own token."""

from typing import Final

import aiohttp
import structlog
from aiohttp import web
from yarl import URL

from appservice_bridge.domain.registration import Registration
from appservice_bridge.http.answers import error

log = structlog.get_logger(__name__)

TIMEOUT_SECONDS: Final = 30.0


class PassThrough:
    """Asks the appservice what the homeserver asked the relay, and hands the answer back."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def ask(self, registration: Registration, request: web.Request) -> web.Response:
        """The appservice's answer; 502 if it cannot be reached, 504 if it does not answer."""
        if registration.url is None or not registration.url.startswith("http"):
            return error(404, "M_NOT_FOUND", "this appservice has no url to ask")
        try:
            async with self._session.request(
                request.method,
                _target(registration, request),
                data=await request.read() or None,
                headers=_headers(registration, request),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
            ) as response:
                return web.Response(
                    status=response.status,
                    body=await response.read(),
                    content_type=response.content_type,
                )
        except TimeoutError:
            return _failed(registration, 504, "the appservice did not answer in time")
        except (aiohttp.ClientError, OSError):
            return _failed(registration, 502, "the appservice cannot be reached")


def _failed(registration: Registration, status: int, message: str) -> web.Response:
    log.warning("question.failed", appservice=registration.id, status=status)
    return error(status, "M_UNKNOWN", message)


def _target(registration: Registration, request: web.Request) -> URL:
    """The same path and query at the appservice's own url, as they were encoded, less the token."""
    raw = request.rel_url.raw_path.split("/", 3)  # '', 'appservice', id, the rest
    base = URL(f"{registration.url}/{raw[3]}", encoded=True)
    query = [(key, value) for key, value in request.query.items() if key != "access_token"]
    return base.with_query(query)


def _headers(registration: Registration, request: web.Request) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {registration.hs_token}"}
    if request.can_read_body:
        headers["Content-Type"] = request.headers.get("Content-Type", "application/json")
    return headers
