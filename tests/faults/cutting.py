"""Connections that are cut, stalled and half closed on their way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from tests.faults.killing import moments
from tests.faults.proxy import Proxy
from tests.faults.stage import Stage

_DATABASE = "database connection"
_APPSERVICE = "appservice connection"


@asynccontextmanager
async def proxies(stage: Stage) -> AsyncIterator[None]:
    """One between the workers and Postgres, one before each appservice."""
    async with AsyncExitStack() as stack:
        own = Proxy(stage.postgres.port.number, stage.chance)
        stage.proxies[_DATABASE] = [await stack.enter_async_context(own.running())]
        stage.database_port = own.port.number
        stage.proxies[_APPSERVICE] = []
        for one, port in stage.real_ports.items():
            before = await stack.enter_async_context(Proxy(port, stage.chance).running())
            stage.proxies[_APPSERVICE].append(before)
            stage.appservice_ports[one] = before.port.number
        yield


async def cut_connections(stage: Stage, seconds: float) -> None:
    """Every second or so something happens to one of the ways."""
    (database,) = stage.proxies[_DATABASE]
    async for _ in moments(stage, seconds, 0.3, 1.2):
        what = stage.chance.choice((_DATABASE, _APPSERVICE))
        await _harm(stage, stage.chance.choice(stage.proxies[what]))
        database.cuts_commits = stage.chance.choice((0.0, 0.0, 0.05, 0.3))
        stage.count_deaths()
    database.cuts_commits = 0.0
    for what, those in stage.proxies.items():
        stage.kills[what, "cut"] += sum(one.cuts for one in those)


async def _harm(stage: Stage, way: Proxy) -> None:
    match stage.chance.choice(("reset", "close", "half-close", "stall", "long-stall")):
        case "reset":
            way.cut_some(reset=True)
        case "close":
            way.cut_some(reset=False)
        case "half-close":
            way.half_close_some()
        case "stall":
            await _stall(way, stage.chance.uniform(0.2, 3))
        case "long-stall":
            await _stall(way, stage.chance.choice((1, 4, 12)))
            way.cut_some(reset=True)


async def _stall(way: Proxy, seconds: float) -> None:
    way.flows.clear()
    await asyncio.sleep(seconds)
    way.flows.set()
