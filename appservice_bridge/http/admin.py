"""What operators and probes ask a worker."""

from collections.abc import Callable
from typing import Any, Final, assert_never

from aiohttp import web

from appservice_bridge.domain.reloading import (
    Reloaded,
    ReloadOutcome,
    ReloadRefused,
    Reloads,
    ReloadWaits,
    Unchanged,
)
from appservice_bridge.http.admin_auth import AdminAuth, Role, needs
from appservice_bridge.http.answers import matrix_errors
from appservice_bridge.storage.database import Database, DatabaseUnavailableError

ROOT: Final = "/_appservice_bridge/v1"


class Admin:
    """Health (the process answers), readiness (it can store and deliver), and reloads."""

    def __init__(
        self,
        database: Database,
        leases_hold: Callable[[], bool],
        *,
        auth: AdminAuth,
        reloads: Reloads,
    ) -> None:
        self._database = database
        self._leases_hold = leases_hold
        self._auth = auth
        self._reloads = reloads

    def application(self) -> web.Application:
        """The routes, below `/_appservice_bridge/v1`."""
        app = web.Application(middlewares=[matrix_errors, self._auth.middleware])
        for root in ("", ROOT):
            app.router.add_get(root + "/health", self._health)
            app.router.add_get(root + "/ready", self._ready)
        app.router.add_post(ROOT + "/reload", self._reload)
        app.router.add_get(ROOT + "/reload", self._last_reload)
        return app

    @needs(Role.NOBODY)
    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    @needs(Role.NOBODY)
    async def _ready(self, _request: web.Request) -> web.Response:
        """It is ready with an older configuration, too; that a newer one is not in force is said.

        Why is for those with a token.
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
    async def _reload(self, _request: web.Request) -> web.Response:
        """Read the configuration again; answered when it is in force, or refused."""
        outcome = await self._reloads.outcome()
        return web.json_response(_told(outcome), status=_status(outcome))

    @needs(Role.VIEWER)
    async def _last_reload(self, _request: web.Request) -> web.Response:
        last = self._reloads.last
        return web.json_response({"outcome": None} if last is None else _told(last))


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
