"""Appservices in a process of their own, which count what comes: `python -m … PORT`.

Any number of them, told apart by the first part of the path. What comes is not parsed but counted,
so that the receivers take little of the machine that they share with what is measured.
"""

import asyncio
import json
import re
import sys
import time
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final

import uvloop
from aiohttp import web

SENT_AT: Final = re.compile(rb'"at": *(\d+)')


class Manner(StrEnum):
    """How appservices behave.

    Attributes:
        DEAD: by their numbers they hang, refuse, or cut the connection.
    """

    GOOD = "good"
    REFUSE = "refuse"
    HANG = "hang"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is asked of the receivers from now on; what they saw before is forgotten.

    Attributes:
        marker: stands in a body once for each message.
        timed: how long each message took is noted, too; those sent before the order do not count.
        manner: of those that are no exception.
        good: exceptions, which are good whatever the others do; only these are counted.
    """

    marker: str = '"to_user_id"'
    timed: bool = False
    manner: Manner = Manner.GOOD
    good: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Seen:
    """What came since the last order; times are CLOCK_MONOTONIC in nanoseconds.

    Attributes:
        requests: with a transaction that had not come before.
        first_messages: in the first request.
        open: requests that hang now.
    """

    messages: int = 0
    requests: int = 0
    first_messages: int = 0
    first_ns: int = 0
    last_ns: int = 0
    open: int = 0


@dataclass(slots=True)
class Server:
    """All of them."""

    order: Order = field(default_factory=Order)
    seen: Seen = field(default_factory=Seen)
    since_ns: int = 0
    arrived_ns: list[tuple[int, int]] = field(default_factory=list)  # each was sent, and came
    hanging: int = 0
    known: set[tuple[str, str]] = field(default_factory=set)
    good_again: asyncio.Event = field(default_factory=asyncio.Event)

    def application(self) -> web.Application:
        """Its routes: the appservices' own, the one homeserver's that workers ask, and /bench."""
        app = web.Application(client_max_size=2**30)
        app.router.add_get("/bench/seen", self._tell)
        app.router.add_get("/bench/arrived", self._tell_times)
        app.router.add_post("/bench/order", self._obey)
        app.router.add_put("/{name}/_matrix/app/v1/transactions/{txn}", self._transaction)
        app.router.add_put("/_matrix/app/v1/transactions/{txn}", self._transaction)
        app.router.add_post("/{name}/_matrix/app/v1/ping", self._ping)
        app.router.add_post("/_matrix/client/v1/appservice/{name}/ping", self._ping)
        return app

    async def _transaction(self, request: web.Request) -> web.Response:
        name, txn = request.match_info.get("name", ""), request.match_info["txn"]
        body = await request.read()
        now = time.monotonic_ns()
        if self.order.manner is not Manner.GOOD and name not in self.order.good:
            return await self._misbehave(request, name)
        if (name, txn) not in self.known and (not self.order.good or name in self.order.good):
            self.known.add((name, txn))
            self._count(body, now)
        return web.Response(body=b"{}", content_type="application/json")

    async def _misbehave(self, request: web.Request, name: str) -> web.Response:
        manner = self.order.manner
        if manner is Manner.DEAD:
            manner = (Manner.HANG, Manner.REFUSE, Manner.DEAD)[int(name[-4:]) % 3]
        if manner is Manner.HANG:
            self.hanging += 1
            try:
                await self.good_again.wait()
            finally:
                self.hanging -= 1
        elif manner is Manner.DEAD and request.transport is not None:
            request.transport.abort()
        return web.Response(status=503)

    def _count(self, body: bytes, now: int) -> None:
        if self.order.timed:
            sent = [int(at) for at in SENT_AT.findall(body)]
            arrived = [(at, now) for at in sent if at >= self.since_ns]
            self.arrived_ns += arrived
            messages = len(arrived)
        else:
            messages = body.count(self.order.marker.encode())
        if not self.seen.requests:
            self.seen.first_ns, self.seen.first_messages = now, messages
        self.seen.requests += 1
        self.seen.messages += messages
        self.seen.last_ns = now

    async def _ping(self, _request: web.Request) -> web.Response:
        return web.json_response({"duration_ms": 1})

    async def _tell(self, _request: web.Request) -> web.Response:
        return web.json_response(asdict(self.seen) | {"open": self.hanging})

    async def _tell_times(self, _request: web.Request) -> web.Response:
        return web.json_response(self.arrived_ns)

    async def _obey(self, request: web.Request) -> web.Response:
        asked: dict[str, Any] = await request.json()
        self.good_again.set()
        self.order = Order(**asked | {"manner": Manner(asked["manner"])})
        self.seen, self.arrived_ns, self.known = Seen(), [], set()
        self.since_ns = time.monotonic_ns()
        self.good_again = asyncio.Event()
        return web.json_response({})


async def _serve(port: int) -> None:
    runner = web.AppRunner(
        Server().application(),
        access_log=None,
        shutdown_timeout=1,
        handler_cancellation=True,  # who gave up waiting hangs no more
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    await asyncio.Event().wait()


def encode(order: Order) -> bytes:
    """An order as it is sent."""
    return json.dumps(asdict(order)).encode()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
