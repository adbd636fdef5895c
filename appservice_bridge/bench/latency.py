"""How long a message takes to the appservice, from its insert and from its commit."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from appservice_bridge.bench import filling
from appservice_bridge.bench.figures import Side, percentile
from appservice_bridge.bench.receiver import Order
from appservice_bridge.bench.scenario import MEMORY, Figures, Scenario
from appservice_bridge.bench.stage import Running, Stage, connected
from appservice_bridge.storage.database import Connection

APPSERVICES: Final = 8
CONNECTIONS: Final = 8
LOADS: Final[Mapping[str, int]] = {"": 20, "500": 500}
"""Messages per second of each window, by what is before the percentile in a figure's name."""

Send = Callable[[Connection, str, int], Awaitable[int]]
"""Inserts one message for one of the first so many appservices, and commits; returns since when, by
CLOCK_MONOTONIC in nanoseconds."""


async def capture_one(conn: Connection, owner: str, number: int) -> int:
    """As the trigger writes it."""
    began = time.monotonic_ns()
    recipient = filling.user(owner, number % filling.USERS)
    await filling.capture(conn, [recipient], number, filling.stored(began))
    return began


async def insert_naive(conn: Connection, owner: str, number: int) -> int:
    """Into the naive outbox."""
    began = time.monotonic_ns()
    recipient = filling.user(owner, number % filling.USERS)
    await conn.execute(filling.INSERT_NAIVE, owner, filling.item(recipient, began).decode())
    return began


@asynccontextmanager
async def connections(dsn: str) -> "AsyncIterator[asyncio.LifoQueue[Connection]]":
    """Several connections to take from and put back."""
    async with AsyncExitStack() as stack:
        free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        for _ in range(CONNECTIONS):
            free.put_nowait(await stack.enter_async_context(connected(dsn)))
        yield free


async def send_steadily(
    free: "asyncio.LifoQueue[Connection]",
    send: Send,
    *,
    per_second: float,
    messages: int,
    first: int,
    appservices: int,
) -> dict[int, int]:
    """Send at a steady rate, give or take half a step, whether or not the last was committed.

    Returns when each was committed, by when it was sent.
    """
    loop, shake = asyncio.get_running_loop(), random.Random(first)  # noqa: S311
    began = loop.time()
    committed: dict[int, int] = {}

    async def one(number: int) -> None:
        conn = await free.get()
        try:
            sent = await send(conn, filling.appservice(number % appservices), number)
            committed[sent] = time.monotonic_ns()
        finally:
            free.put_nowait(conn)

    async with asyncio.TaskGroup() as group:
        for turn in range(messages):
            due = began + (turn + shake.random()) / per_second
            await asyncio.sleep(max(0.0, due - loop.time()))
            group.create_task(one(first + turn))
    return committed


async def windows(
    stage: Stage,
    running: Running,
    dsn: str,
    send: Send,
    *,
    appservices: int = APPSERVICES,
    order: Order | None = None,
) -> Figures:
    """One window at each load, after some messages to warm up; for the first so many."""
    figures: dict[str, float] = {}
    seconds, number = stage.size(10, quick=2), 1
    async with connections(dsn) as free:
        for name, per_second in (("warm", 50), *LOADS.items()):
            messages = per_second * (1 if name == "warm" else seconds)
            await stage.receivers.order(order or Order(timed=True))
            committed = await send_steadily(
                free,
                send,
                per_second=per_second,
                messages=messages,
                first=number,
                appservices=appservices,
            )
            number += messages
            await stage.until(messages, running)
            if name != "warm":
                took = await stage.receivers.took_ms()
                figures[name] = percentile(took, 50)
                figures[f"{name}-p99".lstrip("-")] = percentile(took, 99)
            if not name:
                took = await stage.receivers.took_ms(committed)
                figures["commit"] = percentile(took, 50)
                figures["commit-p99"] = percentile(took, 99)
    return figures | {MEMORY: running.peak_memory_mb()}


async def _bridge(stage: Stage) -> Figures:
    async with stage.database() as dsn, stage.worker(dsn, APPSERVICES) as worker:
        return await windows(stage, worker, dsn, capture_one)


async def _naive(stage: Stage) -> Figures:
    async with stage.database() as dsn, stage.yardstick("naive", dsn, APPSERVICES) as naive:
        return await windows(stage, naive, dsn, insert_naive)


UNITS: Final = {"": "ms", "p99": "ms", "500": "ms", "500-p99": "ms", MEMORY: "MB"}

SCENARIOS: Final = (
    Scenario(
        name="latency",
        about="to the appservice from before the insert, at 20/s and at 500/s, p50 and p99, and "
        "at 20/s from the commit",
        units={"commit": "ms", "commit-p99": "ms"} | UNITS,
        sides={Side.BRIDGE: _bridge, Side.NAIVE: _naive},
        quick=True,
    ),
)
