"""Which appservice shows its as_token, and whether it may be served in this way."""

import asyncio
from collections.abc import Mapping

import structlog
from aiohttp import web

from appservice_bridge.delivery.destination import Destination
from appservice_bridge.domain.tokens import Tokens
from appservice_bridge.domain.transport import Transport
from appservice_bridge.http.answers import error

log = structlog.get_logger(__name__)


class AsTokens:
    """Tells appservices by the token that they show to the homeserver, too."""

    def __init__(self, tokens: Tokens, destinations: Mapping[str, Destination]) -> None:
        self._tokens = tokens
        self._destinations = destinations

    def served(self, request: web.Request, transport: Transport) -> Destination | web.Response:
        """Whom the request is from, if it is to be served over this transport."""
        shown = _bearer(request)
        if not shown:
            return error(401, "M_MISSING_TOKEN", "the as_token is missing")
        now = asyncio.get_running_loop().time()
        appservice_id = self._tokens.of_as_token(shown, now=now)
        if appservice_id is None:
            log.warning("as_token.unknown", transport=transport)
            return error(401, "M_UNKNOWN_TOKEN", "this is no as_token of a registration here")
        destination = self._destinations.get(appservice_id)
        configured = "none" if destination is None else destination.transport
        if destination is None or configured != transport:
            return error(
                403,
                "M_FORBIDDEN",
                f"the transport of {appservice_id} is {configured}; to use this one, set"
                f" appservices.{appservice_id}.transport to {transport} in the bridge's config",
            )
        return destination


def _bearer(request: web.Request) -> bytes:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip().encode(errors="surrogateescape") if scheme.lower() == "bearer" else b""
