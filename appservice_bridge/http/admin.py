"""What operators and probes ask a worker."""

from collections.abc import Callable

from aiohttp import web

from appservice_bridge.storage.database import Database, DatabaseUnavailableError


class Admin:
    """Health and readiness. Health: the process answers. Ready: it can store and deliver."""

    def __init__(self, database: Database, leases_hold: Callable[[], bool]) -> None:
        self._database = database
        self._leases_hold = leases_hold

    def application(self) -> web.Application:
        """The routes, below `/_appservice_bridge/v1`."""
        app = web.Application()
        for root in ("", "/_appservice_bridge/v1"):
            app.router.add_get(root + "/health", self._health)
            app.router.add_get(root + "/ready", self._ready)
        return app

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _ready(self, _request: web.Request) -> web.Response:
        try:
            await self._database.require_writable()
        except DatabaseUnavailableError as unavailable:
            return web.json_response({"ready": False, "reason": unavailable.reason}, status=503)
        if not self._leases_hold():
            return web.json_response({"ready": False, "reason": "leases expired"}, status=503)
        return web.json_response({"ready": True})
