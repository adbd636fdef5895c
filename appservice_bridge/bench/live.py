"""Capture and delivery together: messages per second, from the first insert to the last request."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from appservice_bridge.bench import filling
from appservice_bridge.bench.figures import Side
from appservice_bridge.bench.receiver import Order
from appservice_bridge.bench.scenario import MEMORY, RATE, Figures, Scenario
from appservice_bridge.bench.stage import Running, Stage, connected
from appservice_bridge.storage.database import Connection

APPSERVICES: Final = 8
BATCH: Final = 400  # messages a DB transaction of the bridge's producers
PRODUCERS: Final = 2
NAIVE_PRODUCERS: Final = 8

Produce = Callable[[Connection, Iterator[int]], Awaitable[None]]


async def _capture(conn: Connection, batches: Iterator[int]) -> None:
    for first in batches:
        users = [
            filling.user(filling.appservice(n % APPSERVICES), n % filling.USERS)
            for n in range(first, first + BATCH)
        ]
        await filling.capture(conn, users, first + 1, filling.stored())


async def _append(conn: Connection, batches: Iterator[int]) -> None:
    payload = filling.item(filling.user("as0000", 0))
    for first in batches:
        last = first + BATCH - 1
        await conn.execute(filling.APPEND_MANY, first, last, APPSERVICES, payload)


async def _insert(conn: Connection, numbers: Iterator[int]) -> None:
    for number in numbers:
        owner = filling.appservice(number % APPSERVICES)
        message = filling.item(filling.user(owner, number % filling.USERS)).decode()
        await conn.execute(filling.INSERT_NAIVE, owner, message)


async def _live(
    stage: Stage, running: Running, dsn: str, produce: Produce, batches: range, producers: int
) -> Figures:
    """Produce at full speed from several connections, and see when the last one came."""
    work = iter(batches)  # shared: each is taken once
    await stage.receivers.order(Order())

    async def one() -> None:
        async with connected(dsn) as conn:
            await produce(conn, work)

    began = time.monotonic_ns()
    async with asyncio.TaskGroup() as group:
        for _ in range(producers):
            group.create_task(one())
    await stage.until(batches.stop, running)
    seconds = ((await stage.receivers.seen()).last_ns - began) / 1e9
    return {"": batches.stop / seconds, MEMORY: running.peak_memory_mb()}


async def _bridge(stage: Stage) -> Figures:
    batches = range(0, stage.size(200_000, quick=20_000), BATCH)
    async with stage.database() as dsn, stage.worker(dsn, APPSERVICES) as worker:
        return await _live(stage, worker, dsn, _capture, batches, PRODUCERS)


async def _naive(stage: Stage) -> Figures:
    rows = range(stage.size(20_000, quick=4_000))
    async with stage.database() as dsn, stage.yardstick("naive", dsn, APPSERVICES) as naive:
        return await _live(stage, naive, dsn, _insert, rows, NAIVE_PRODUCERS)


async def _ceiling(stage: Stage) -> Figures:
    batches = range(0, stage.size(200_000, quick=20_000), BATCH)
    async with stage.database() as dsn, stage.yardstick("ceiling", dsn, APPSERVICES) as ceiling:
        return await _live(stage, ceiling, dsn, _append, batches, 1)


SCENARIOS: Final = (
    Scenario(
        name="live",
        about=f"producers insert at full speed for {APPSERVICES} appservices while it is delivered",
        units=RATE,
        sides={Side.BRIDGE: _bridge, Side.NAIVE: _naive, Side.CEILING: _ceiling},
        quick=True,
    ),
)
