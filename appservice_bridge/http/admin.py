"""What operators and probes ask a worker."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, assert_never

import aiohttp
import structlog
from aiohttp import web

from appservice_bridge.config.loading import Loaded
from appservice_bridge.delivery.history import History
from appservice_bridge.delivery.operating import (
    NothingInFlightError,
    NotInFlightError,
    NotSplittableError,
    PausedError,
    SeveralInFlightError,
)
from appservice_bridge.delivery.replaying import NothingKeptError
from appservice_bridge.domain.author import Author
from appservice_bridge.domain.owners import Owners
from appservice_bridge.domain.reloading import (
    Reloaded,
    ReloadOutcome,
    ReloadRefused,
    Reloads,
    ReloadWaits,
    Unchanged,
)
from appservice_bridge.http.admin_api import describe
from appservice_bridge.http.admin_asked import NotUnderstoodError
from appservice_bridge.http.admin_auth import AdminAuth, Role, needs
from appservice_bridge.http.admin_events import Events
from appservice_bridge.http.admin_looking import Looking
from appservice_bridge.http.admin_orders import Orders, author
from appservice_bridge.http.admin_overview import Overview
from appservice_bridge.http.answers import error, matrix_errors
from appservice_bridge.http.dashboard.files import Dashboard
from appservice_bridge.routing.backfilling import NoInboxError, NotAnnouncedError
from appservice_bridge.routing.resyncing import NoEncryptionError, NothingToReadError
from appservice_bridge.routing.seeding import OtherRegistrationsError
from appservice_bridge.storage import admin_audit
from appservice_bridge.storage.budget import OverBudgetError
from appservice_bridge.storage.database import (
    Database,
    DatabaseUnavailableError,
    SourceUnreadableError,
)
from appservice_bridge.storage.orders import UnknownAppserviceError
from appservice_bridge.storage.synapse import NotSynapseError

log = structlog.get_logger(__name__)

ROOT: Final = "/_appservice_bridge/v1"
LARGEST_BODY_BYTES: Final = 65_536  # a thousand ids of dead letters

SECURITY: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""What every answer says to browsers; a page may say more for itself. Nothing is for other sites:
there is no CORS."""

_NOT_AS_IT_IS: Final = (
    PausedError,
    NothingInFlightError,
    NotInFlightError,
    NotSplittableError,
    SeveralInFlightError,
    NothingKeptError,
    NoEncryptionError,
    NothingToReadError,
    NoInboxError,
    NotAnnouncedError,
    NotSynapseError,
    OtherRegistrationsError,
    OverBudgetError,
)
"""What is understood and cannot be done as things are; the text says what to do first."""


class Admin:
    """Health (the process answers), readiness (it can store and deliver), reloads, and the rest."""

    def __init__(
        self,
        database: Database,
        leases_hold: Callable[[], bool],
        *,
        of: Loaded,
        auth: AdminAuth,
        reloads: Reloads,
        history: History,
        owners: Owners,
        session: aiohttp.ClientSession,
    ) -> None:
        self._database = database
        self._leases_hold = leases_hold
        self._auth = auth
        self._reloads = reloads
        shown = Overview(database, of, history)
        self._looking = Looking(database, shown, history)
        self._events = Events(shown.body)
        self._orders = Orders(database, of, owners, session)

    async def run(self, stop: asyncio.Event) -> None:
        """What goes on beside the requests, until `stop` is set."""
        await self._events.run(stop)

    def application(self) -> web.Application:
        """The routes, below `/_appservice_bridge/v1`."""
        app = web.Application(
            middlewares=[matrix_errors, self._auth.middleware, _refusals],
            client_max_size=LARGEST_BODY_BYTES,
        )
        app.on_response_prepare.append(_secure)
        for root in ("", ROOT):
            app.router.add_get(root + "/health", self._health)
            app.router.add_get(root + "/ready", self._ready)
        app.router.add_post(ROOT + "/reload", self._reload)
        app.router.add_get(ROOT + "/reload", self._last_reload)
        app.router.add_get(ROOT + "/events", self._events.stream, allow_head=False)
        app.router.add_get(ROOT + "/openapi.json", describe)
        self._looking.add_to(app, ROOT)
        self._orders.add_to(app, ROOT)
        Dashboard().add_to(app)
        return app

    @needs(Role.NOBODY)
    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    @needs(Role.NOBODY)
    async def _ready(self, _request: web.Request) -> web.Response:
        """It is ready with an older configuration, too; that a newer one is not in force is said.

        Why a reload was refused is for those with a token.
        """
        try:
            await self._database.require_writable()
        except DatabaseUnavailableError as unavailable:
            return web.json_response({"ready": False, "reason": unavailable.reason}, status=503)
        if not self._leases_hold():
            return web.json_response({"ready": False, "reason": "leases expired"}, status=503)
        ready: dict[str, Any] = {"ready": True}
        if isinstance(self._reloads.last, ReloadRefused | ReloadWaits):
            ready["reload"] = _told(self._reloads.last)["outcome"]
        return web.json_response(ready)

    @needs(Role.OPERATOR)
    async def _reload(self, request: web.Request) -> web.Response:
        """Read the configuration again; answered when it is in force, or refused."""
        by = author(request)
        outcome = await self._reloads.outcome()
        if isinstance(outcome, Reloaded):
            await self._put_down_reload(by)
        return web.json_response(_told(outcome), status=_status(outcome))

    async def _put_down_reload(self, by: Author) -> None:
        """It is in force, whether it can be put down or not; then the log holds it."""
        try:
            async with self._database.transaction() as conn:
                await admin_audit.write(conn, by, "reload", outcome="reloaded")
        except DatabaseUnavailableError as unavailable:
            log.error("audit.not_written", name=by.name, reason=unavailable.reason)

    @needs(Role.VIEWER)
    async def _last_reload(self, _request: web.Request) -> web.Response:
        last = self._reloads.last
        return web.json_response({"outcome": None} if last is None else _told(last))


async def _secure(_request: web.Request, response: web.StreamResponse) -> None:
    for name, value in SECURITY.items():
        response.headers.setdefault(name, value)


@web.middleware
async def _refusals(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """What is refused by name, in Matrix's words."""
    try:
        return await handler(request)
    except NotUnderstoodError as refusal:
        return error(refusal.status, refusal.errcode, refusal.reason)
    except UnknownAppserviceError as unknown:
        return error(404, "M_NOT_FOUND", str(unknown))
    except _NOT_AS_IT_IS as refusal:
        return error(409, "M_UNKNOWN", str(refusal))
    except SourceUnreadableError as unreadable:
        return error(503, "M_UNKNOWN", str(unreadable))


def _told(outcome: ReloadOutcome) -> dict[str, Any]:
    match outcome:
        case Reloaded():
            return {"outcome": "reloaded"}
        case Unchanged():
            return {"outcome": "unchanged"}
        case ReloadRefused(reasons=reasons):
            return {"outcome": "refused", "reasons": list(reasons)}
        case ReloadWaits(reason=reason):
            return {"outcome": "waits", "reasons": [reason]}
        case _:
            assert_never(outcome)


def _status(outcome: ReloadOutcome) -> int:
    match outcome:
        case Reloaded() | Unchanged():
            return 200
        case ReloadRefused():
            return 422
        case ReloadWaits():
            return 503
        case _:
            assert_never(outcome)
