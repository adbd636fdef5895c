"""What the homeserver takes for the appservice: the whole Application Service API."""

import asyncio
from collections.abc import Callable, Container, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

import orjson
import structlog
from aiohttp import web

from appservice_bridge.domain.budget import Budget
from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.domain.registration import Registration
from appservice_bridge.domain.tokens import TokenKind, Tokens
from appservice_bridge.http.answers import error, matrix_errors
from appservice_bridge.http.pass_through import PassThrough, has_url
from appservice_bridge.http.wake_homeserver import (
    PROBE_STATUS,
    HomeserverWaker,
    is_own_ping,
    is_probe,
)
from appservice_bridge.storage import capture_log, dead_letters, lanes, ledger
from appservice_bridge.storage.budget import OverBudgetError, require_space
from appservice_bridge.storage.capture_log import CapturedKind
from appservice_bridge.storage.database import (
    Connection,
    Database,
    DatabaseUnavailableError,
    SourceUnreadableError,
)
from appservice_bridge.storage.dead_letters import Buried
from appservice_bridge.storage.ledger import LedgerKey

log = structlog.get_logger(__name__)

MAX_BODY_BYTES: Final = 64 * 1024 * 1024
_ROOT: Final = "/appservice/{appservice_id:[^/]+}"
_TRANSACTION: Final = "/transactions/{txn_id:(?s:.+)}"
_QUERIES: Final = (
    "/_matrix/app/v1/{tail:(?s:(?:users|rooms|thirdparty)/.*)}",
    "/_matrix/app/unstable/{tail:(?s:thirdparty/.*)}",
    "/{tail:(?s:(?:users|rooms)/.*)}",
)


class BeforeTransactions(Protocol):
    """What has to be in the log before a transaction of the homeserver is."""

    def in_room_order(self, appservice_id: str, body: bytes) -> AbstractAsyncContextManager[None]:
        """Put what its rooms lack into the log; the block then stores the transaction itself.

        Raises:
            DatabaseUnavailableError: do not store it.
        """

    async def before_transaction(self, conn: Connection) -> None:
        """In the DB transaction that stores it.

        Raises:
            SourceUnreadableError: store it without.
        """


class Relay:
    """Stores transactions, and passes queries through to the appservice.

    A transaction is answered 200 once it is committed, and 503 while it cannot be stored, or there
    is no room for it: the homeserver then keeps it. Anything else would block the homeserver's
    queue for ever. Dying before the answer makes the homeserver send it again, and the copy is
    told by its digest.
    """

    def __init__(
        self,
        database: Database,
        registrations: Mapping[str, Registration],
        delivered: Container[str],
        pass_through: PassThrough,
        waker: HomeserverWaker,
        on_rest_ended: Callable[[], None],
        before: BeforeTransactions | None = None,
        budget: Budget = Budget(),  # noqa: B008 - frozen
        tokens: Tokens | None = None,
    ) -> None:
        self._database = database
        self._tokens = tokens or Tokens(registrations)
        self._told_former: set[str] = set()
        self._registrations = registrations
        self._delivered = delivered
        self._pass_through = pass_through
        self._waker = waker
        self._on_rest_ended = on_rest_ended
        self._before = before
        self._budget = budget

    def application(self) -> web.Application:
        """The routes, below `/appservice/{id}`."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[matrix_errors])
        for prefix in ("/_matrix/app/v1", ""):
            app.router.add_put(_ROOT + prefix + _TRANSACTION, self._transaction)
        app.router.add_post(_ROOT + "/_matrix/app/v1/ping", self._ping)
        for path in _QUERIES:
            app.router.add_get(_ROOT + path, self._query)
        app.router.add_post(_ROOT + "/_matrix/app/unstable/{tail:(?s:.*)}", self._query)
        return app

    async def _transaction(self, request: web.Request) -> web.Response:
        registration = self._authenticated(request)
        if isinstance(registration, web.Response):
            return registration
        try:
            await self._store(registration, request)
        except DatabaseUnavailableError as unavailable:
            self._waker.refused(registration.id)
            log.warning("relay.refused", appservice=registration.id, reason=unavailable.reason)
            return error(503, "M_UNKNOWN", "appservice_bridge cannot store it now; send it again")
        except OverBudgetError:
            self._waker.refused(registration.id)
            log.warning("relay.refused", appservice=registration.id, reason="budget")
            return error(503, "M_LIMIT_EXCEEDED", "no room for it now; send it again")
        return web.json_response({})

    async def _store(self, registration: Registration, request: web.Request) -> None:
        if registration.id not in self._delivered:
            return  # takes no delivery: nothing is stored for it
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            await self._bury(registration.id, f"larger than {MAX_BODY_BYTES} bytes")
            return
        except web.RequestPayloadError:
            await self._bury(registration.id, "cannot be decompressed")
            return
        txn_id = request.match_info["txn_id"]
        if self._before is None:
            await self._append(registration.id, txn_id, body, None)
            return
        async with self._before.in_room_order(registration.id, body):
            try:
                await self._append(registration.id, txn_id, body, self._before)
            except SourceUnreadableError as error:
                log.warning("relay.without_keys", appservice=registration.id, reason=error.reason)
                await self._append(registration.id, txn_id, body, None)

    async def _append(
        self, appservice_id: str, txn_id: str, body: bytes, before: BeforeTransactions | None
    ) -> None:
        """Store it behind whatever has to be in the log before it."""
        limit = self._budget.appservice_bytes
        async with self._database.transaction() as conn:
            await require_space(conn, appservice_id, appservice_bytes=limit)
            if before is not None:
                await before.before_transaction(conn)
            fresh = await capture_log.append_transaction(
                conn, appservice_id, txn_id=txn_id, body=body
            )
            if not fresh:
                key = LedgerKey(appservice_id, CapturedKind.TRANSACTION, LedgerOutcome.REPEATED)
                await ledger.count(conn, {key: 1})
        log.debug("relay.stored", appservice=appservice_id, bytes=len(body), fresh=fresh)

    async def _bury(self, appservice_id: str, reason: str) -> None:
        kind = CapturedKind.TRANSACTION
        dead = Buried(appservice_id=appservice_id, kind=kind, reason=reason, payload=None)
        key = LedgerKey(appservice_id, kind, LedgerOutcome.REFUSED)
        async with self._database.transaction() as conn:
            await dead_letters.bury(conn, [dead])
            await ledger.count(conn, {key: 1})
        log.error("relay.buried", appservice=appservice_id, reason=reason)

    async def _ping(self, request: web.Request) -> web.Response:
        registration = self._authenticated(request)
        if isinstance(registration, web.Response):
            return registration
        transaction_id = _transaction_id(await request.read())
        if is_own_ping(transaction_id):
            return web.json_response({})  # ours: it asked whether the homeserver reaches the relay
        if is_probe(transaction_id):
            return error(PROBE_STATUS, "M_UNKNOWN", "this is the relay of appservice_bridge")
        if not has_url(registration):
            return error(400, "M_URL_NOT_SET", "this appservice has no url to ping")
        answer = await self._pass_through.ask(registration, request)
        if 200 <= answer.status < 300:
            await self._end_rest(registration.id)
        return answer

    async def _end_rest(self, appservice_id: str) -> None:
        try:
            async with self._database.transaction() as conn:
                await lanes.end_rest(conn, appservice_id)
        except DatabaseUnavailableError as unavailable:
            log.warning("relay.wake_lost", appservice=appservice_id, reason=unavailable.reason)
        self._on_rest_ended()

    async def _query(self, request: web.Request) -> web.Response:
        registration = self._authenticated(request)
        if isinstance(registration, web.Response):
            return registration
        return await self._pass_through.ask(registration, request)

    def _authenticated(self, request: web.Request) -> Registration | web.Response:
        """The registration that the request is for, if it shows its hs_token."""
        registration = self._registrations.get(request.match_info["appservice_id"])
        if registration is None:
            return error(404, "M_NOT_FOUND", "no registration with this id is known here")
        shown = _tokens(request)
        if not shown:
            return error(401, "M_MISSING_TOKEN", "the hs_token is missing")
        if not all(self._accepts(registration.id, token) for token in shown):
            log.warning("relay.wrong_token", appservice=registration.id)
            return error(403, "M_FORBIDDEN", "this is not the hs_token of this registration")
        return registration

    def _accepts(self, appservice_id: str, token: bytes) -> bool:
        """Whether it is the hs_token, or was until lately: the homeserver restarts to change it."""
        if self._tokens.is_current(appservice_id, TokenKind.HS_TOKEN, token):
            return True
        now = asyncio.get_running_loop().time()
        left = self._tokens.former_seconds(appservice_id, TokenKind.HS_TOKEN, token, now=now)
        if left is not None and appservice_id not in self._told_former:
            self._told_former.add(appservice_id)
            mend = "give the homeserver the new registration"
            seconds = round(left)
            log.warning(
                "relay.former_token", appservice=appservice_id, seconds_left=seconds, mend=mend
            )
        return left is not None


def _tokens(request: web.Request) -> list[bytes]:
    scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
    shown = [bearer.strip()] if scheme.lower() == "bearer" else []
    if "access_token" in request.query:
        shown.append(request.query["access_token"])
    return [token.encode(errors="surrogateescape") for token in shown]


def _transaction_id(body: bytes) -> object:
    try:
        return orjson.loads(body).get("transaction_id")
    except (ValueError, AttributeError):
        return None
