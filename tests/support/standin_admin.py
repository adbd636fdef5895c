"""A stand-in for a worker's admin port: the real page before answers that a test makes up.

It is for what a real worker cannot be brought to show at will: every state at once, a thousand
lanes, devices without keys. What the page does to a real worker is tested on one.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from appservice_bridge.domain.lane_state import LaneState
from appservice_bridge.http.admin_auth import AdminAuth, Operator, Role, needs, whoever_asks
from appservice_bridge.http.dashboard.files import Dashboard

ROOT: Final = "/_appservice_bridge/v1"
DAY: Final = 86_400
NASTY: Final = "<img src=x onerror=alert(1)>/&amp;%2F #?ü"


def lane(id_: str, state: str = "idle", **changed: Any) -> dict[str, Any]:
    """An appservice as the admin port tells of it."""
    well = LaneState(state).well
    return {
        "id": id_,
        "state": state,
        "well": well,
        "not_well_since": None if well else now() - 240_000,
        "why": None if well else f"it is {state}",
        "mend": None if well else "look at its log",
        "backlog": 0,
        "device_updates": 0,
        "bytes_waiting": 0,
        "oldest_waiting_seconds": None,
        "oldest_to_device_seconds": None,
        "failed_attempts": 0,
        "last_outcome": "acked",
        "last_status": 200,
        "last_ack_ts": now() - 9_000,
        "due_in_seconds": 0,
        "worker": "host:1",
        "transport": "http",
        "url_host": "127.0.0.1:29318",
        "dead_letters": 0,
        "delivered": 5_120,
        "per_second": 0.0,
    } | changed


def letter(number: int) -> dict[str, Any]:
    return {
        "id": f"{number:08d}-0000-0000-0000-000000000000",
        "buried_at": now() - DAY * 1000,
        "kind": "to_device",
        "reason": "refused",
        "status": 400,
        "errcode": "M_BAD_JSON",
        "txn_id": "abcdef-7",
        "user_id": "@irc_anna:example.org",
        "device_id": "DEVICE",
        "bytes": 2_048,
        "redrivable": True,
    }


def transaction(number: int, state: str) -> dict[str, Any]:
    return {
        "txn_id": f"abcdef-{number}",
        "number": number,
        "state": state,
        "items": {"to_device": 12, "event": 3},
        "items_total": 15,
        "bytes": 40_960,
        "sealed_at": now() - 60_000,
        "acked_at": None,
        "refusals": 2,
        "doubtful": False,
        "part_of": None,
    }


def in_flight(**changed: Any) -> dict[str, Any]:
    return {
        "txn_id": "abcdef-7",
        "items": 15,
        "device_lists": 0,
        "device_keys": 0,
        "bytes": 40_960,
        "attempts": 2,
        "doubtful": False,
        "bury_asked_since": None,
    } | changed


def device(number: int, *, low: bool) -> dict[str, Any]:
    return {
        "user_id": f"@irc_{number}:example.org",
        "device_id": f"DEVICE{number}",
        "one_time_keys": {"signed_curve25519": 3 if low else 50},
        "unused_fallback": [] if low else ["signed_curve25519"],
        "low": low,
        "why": "3 one-time keys are left; it must upload more" if low else None,
    }


def every_state() -> list[dict[str, Any]]:
    waits = {
        "backlog": 1_234,
        "bytes_waiting": 4_400_000,
        "oldest_waiting_seconds": 300.0,
        "oldest_to_device_seconds": 299.0,
        "last_outcome": "unreachable",
        "last_status": None,
        "failed_attempts": 7,
        "dead_letters": 2,
    }
    return [lane(state, state, **({} if state.well else waits)) for state in LaneState]


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


@dataclass(kw_only=True)
class StandIn:
    """What is answered, and what was asked for.

    Attributes:
        orders: each POST: path below the root as it came, body.
        flight: the transaction in flight, of each lane.
        speaks: whether the stream of events says anything.
    """

    lanes: list[dict[str, Any]]
    url: str = ""
    orders: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    letters: list[dict[str, Any]] = field(default_factory=list)
    flight: dict[str, Any] = field(default_factory=in_flight)
    speaks: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[str] = field(default_factory=list)

    def overview(self) -> dict[str, Any]:
        return {
            "version": 1,
            "appservices": self.lanes,
            "homeserver": {
                "well": True,
                "capture": {"wanted": "triggers", "mode": "triggers", "problems": []},
                "budget": {"used_bytes": 2**20, "limit_bytes": 2**30, "used_up": False},
            },
            "workers": [{"id": "1", "name": "host:1", "alive": True, "lanes": len(self.lanes)}],
        }

    def application(self) -> web.Application:
        tokens = [
            Operator(name=role.name.lower(), role=role, token=f"secret-{role.name.lower()}".format)
            for role in (Role.VIEWER, Role.OPERATOR, Role.ADMIN)
        ]
        app = web.Application(middlewares=[self._count, AdminAuth(tokens).middleware])
        one = ROOT + "/appservices/{id:[^/]+}"
        app.router.add_get(ROOT + "/whoami", self._whoami)
        app.router.add_get(ROOT + "/appservices", self._appservices)
        app.router.add_get(one, self._appservice)
        app.router.add_get(one + "/transactions", self._transactions)
        app.router.add_get(one + "/dead-letters", self._dead_letters)
        app.router.add_get(ROOT + "/history", self._history)
        app.router.add_get(ROOT + "/events", self._events)
        app.router.add_get(ROOT + "/audit", self._audit)
        app.router.add_post(ROOT + "/{order:.+}", self._order)
        Dashboard().add_to(app)
        return app

    @web.middleware
    async def _count(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.asked.append(request.path)
        answer: web.StreamResponse = await handler(request)
        return answer

    @needs(Role.VIEWER)
    async def _whoami(self, _request: web.Request) -> web.Response:
        operator = whoever_asks()
        return web.json_response({"name": operator.name, "role": operator.role.name.lower()})

    @needs(Role.VIEWER)
    async def _appservices(self, _request: web.Request) -> web.Response:
        return web.json_response(self.overview())

    @needs(Role.VIEWER)
    async def _appservice(self, request: web.Request) -> web.Response:
        found = [each for each in self.lanes if each["id"] == request.match_info["id"]]
        if not found:
            return web.json_response({"errcode": "M_NOT_FOUND", "error": "unknown"}, status=404)
        devices = [device(1, low=True), device(2, low=False)]
        more = {"devices": devices, "waiting": {"to_device": 12, "event": 3}}
        return web.json_response(found[0] | more | {"in_flight": self.flight})

    @needs(Role.VIEWER)
    async def _transactions(self, _request: web.Request) -> web.Response:
        sent = [transaction(8, "waits"), transaction(7, "in_flight")]
        return web.json_response({"transactions": sent, "before": None})

    @needs(Role.VIEWER)
    async def _dead_letters(self, _request: web.Request) -> web.Response:
        return web.json_response({"dead_letters": self.letters, "after": None})

    @needs(Role.VIEWER)
    async def _history(self, _request: web.Request) -> web.Response:
        points = [
            {
                "ts": now() - (60 - n) * 10_000,
                "backlog": n * 3,
                "acked_per_second": n / 7,
                "failed_per_second": 0.1,
                "oldest_seconds": n,
            }
            for n in range(60)
        ]
        return web.json_response({"points": points})

    @needs(Role.VIEWER)
    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        with suppress(ConnectionError):
            while self.speaks.is_set():
                body = json.dumps(self.overview())
                await response.write(f"event: overview\ndata: {body}\n\n".encode())
                await asyncio.sleep(0.2)
        return response

    @needs(Role.ADMIN)
    async def _audit(self, _request: web.Request) -> web.Response:
        return web.json_response({"entries": [], "before": None})

    @needs(Role.OPERATOR)
    async def _order(self, request: web.Request) -> web.Response:
        path = request.rel_url.raw_path.removeprefix(ROOT + "/")
        body = json.loads(await request.read() or b"{}")
        self.orders.append((path, body))
        more = {"discarded": body.get("ids", []), "outcome": "answered", "milliseconds": 1.5}
        return web.json_response(more)


@asynccontextmanager
async def stand_in(lanes: list[dict[str, Any]]) -> AsyncIterator[StandIn]:
    """Serve on loopback for as long as the context lasts."""
    one = StandIn(lanes=lanes)
    one.speaks.set()
    runner = web.AppRunner(one.application(), access_log=None, shutdown_timeout=0.05)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    one.url = f"http://{host}:{port}"
    try:
        yield one
    finally:
        with suppress(asyncio.CancelledError):
            await runner.cleanup()
