"""Transactions for appservices that can neither be reached nor keep a connection: they ask."""

import re
from typing import Final

import orjson
import structlog
from aiohttp import web

from appservice_bridge.delivery.holds import NotServedError
from appservice_bridge.delivery.polls import Polls, ReplacedPollError
from appservice_bridge.domain.transaction import AlteredTransactionError
from appservice_bridge.domain.transport import Transport
from appservice_bridge.http.answers import error
from appservice_bridge.http.as_tokens import AsTokens
from appservice_bridge.storage.database import DatabaseUnavailableError
from appservice_bridge.storage.sealed import Sealed

log = structlog.get_logger(__name__)

ROOT: Final = "/_appservice_bridge/v1/transactions"
DEFAULT_SECONDS: Final = 30.0
LONGEST_SECONDS: Final = 60.0
_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


class Poll:
    """Hands out one transaction at a time; the next comes when it was acknowledged."""

    def __init__(self, as_tokens: AsTokens, polls: Polls) -> None:
        self._as_tokens = as_tokens
        self._polls = polls

    def add_to(self, app: web.Application) -> None:
        """Add the routes to the relay's application, which bounds bodies and shapes errors."""
        app.router.add_get(f"{ROOT}/next", self._next, allow_head=False)
        app.router.add_put(ROOT + "/{txn_id:(?s:.+)}/ack", self._ack)

    async def _next(self, request: web.Request) -> web.Response:
        destination = self._as_tokens.served(request, Transport.POLL)
        if isinstance(destination, web.Response):
            return destination
        asked = request.query.get("timeout", str(DEFAULT_SECONDS))
        if not _SECONDS.fullmatch(asked):
            return error(400, "M_INVALID_PARAM", "timeout is a number of seconds, 0 or more")
        try:
            owed = await self._polls.following(
                destination.registration.id, within_seconds=min(float(asked), LONGEST_SECONDS)
            )
        except ReplacedPollError:
            return error(409, "M_UNKNOWN", "a newer request for the next transaction came")
        except (NotServedError, DatabaseUnavailableError, AlteredTransactionError) as failure:
            return _not_now(destination.registration.id, failure)
        if owed is None:
            return web.Response(status=204)
        return web.Response(body=_spliced(owed), content_type="application/json")

    async def _ack(self, request: web.Request) -> web.Response:
        destination = self._as_tokens.served(request, Transport.POLL)
        if isinstance(destination, web.Response):
            return destination
        appservice_id = destination.registration.id
        try:
            known = await self._polls.ack(appservice_id, request.match_info["txn_id"])
        except (NotServedError, DatabaseUnavailableError, AlteredTransactionError) as failure:
            return _not_now(appservice_id, failure)
        if not known:
            return error(404, "M_NOT_FOUND", "no such transaction is in flight")
        return web.json_response({})


def _spliced(owed: Sealed) -> bytes:
    """The answer; the transaction's own bytes stay as they were sealed."""
    return b'{"txn_id":%s,"transaction":%s}' % (orjson.dumps(owed.txn_id), owed.body)


def _not_now(appservice_id: str, failure: Exception) -> web.Response:
    log.warning("poll.refused", appservice=appservice_id, reason=str(failure))
    return error(503, "M_UNKNOWN", "appservice_bridge cannot serve you now; ask again")
