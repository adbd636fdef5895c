"""A stand-in for the homeserver: only what the relay asks of it, and no Synapse at all."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """One ping as it came in."""

    path: str
    token: str
    body: dict[str, Any]


@dataclass(kw_only=True)
class StandIn:
    """NOT a homeserver: it takes pings and, as Synapse does, pings the appservice's url in turn.

    Attributes:
        relay_ping_urls: where the appservice with an as_token is pinged; without an entry the
            ping is answered 200 and goes nowhere.
        status: what is answered instead, if it is not 200.
    """

    url: str = ""
    pings: list[Ping] = field(default_factory=list)
    relay_ping_urls: dict[str, tuple[str, str]] = field(default_factory=dict)
    relay_answers: list[int] = field(default_factory=list)
    status: int = 200
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def handle(self, request: web.Request) -> web.Response:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        ping = Ping(path=request.rel_url.raw_path, token=token, body=await request.json())
        if token in self.relay_ping_urls:
            self.relay_answers.append(await self._ask_relay(ping))
        self.pings.append(ping)
        async with self.changed:
            self.changed.notify_all()
        return web.json_response({}, status=self.status)

    async def _ask_relay(self, ping: Ping) -> int:
        url, hs_token = self.relay_ping_urls[ping.token]
        headers = {"Authorization": f"Bearer {hs_token}"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json=ping.body, headers=headers) as response,
        ):
            return response.status

    async def until(self, condition: Callable[[], bool], within: float = 60.0) -> None:
        """Wait until something holds of the pings."""
        async with asyncio.timeout(within), self.changed:
            await self.changed.wait_for(condition)


@asynccontextmanager
async def standin_homeserver() -> AsyncIterator[StandIn]:
    """Serve the stand-in on loopback for as long as the context lasts."""
    one = StandIn()
    app = web.Application()
    app.router.add_post("/{tail:.*}", one.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    one.url = f"http://{host}:{port}"
    try:
        yield one
    finally:
        await runner.cleanup()
