"""After an outage, while messages go on coming: how fast the backlog goes until nothing is late."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from appservice_bridge.bench import filling
from appservice_bridge.bench.drain import Drain
from appservice_bridge.bench.figures import Side
from appservice_bridge.bench.latency import (
    APPSERVICES,
    Send,
    capture_one,
    connections,
    insert_naive,
    send_steadily,
)
from appservice_bridge.bench.receiver import Manner, Order
from appservice_bridge.bench.scenario import MEMORY, RATE, Figures, Scenario
from appservice_bridge.bench.stage import LOOK_SECONDS, Running, Stage
from appservice_bridge.storage.database import Connection

PER_SECOND: Final = 500
LATE: Final = PER_SECOND // 2  # so many on the way are none that wait
OUTAGE_SECONDS: Final = 5.0
LONGEST_SECONDS: Final = 1200
RESTS: Final = {"backoff": {"first_seconds": 0.1, "ceiling_seconds": 1.0}}

WAITING: Final = Drain(appservices=APPSERVICES, full=200_000, quick=32_000)
FEWER: Final = Drain(appservices=APPSERVICES, full=40_000, quick=8_000)


class _Traffic:
    """What is sent all the while."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.sent = 0

    async def send(self, conn: Connection, owner: str, number: int) -> int:
        began = await self._send(conn, owner, number)
        self.sent += 1
        return began

    @asynccontextmanager
    async def flowing(self, dsn: str) -> AsyncIterator[None]:
        async with connections(dsn) as free:
            task = asyncio.create_task(
                send_steadily(
                    free,
                    self.send,
                    per_second=PER_SECOND,
                    messages=PER_SECOND * LONGEST_SECONDS,
                    first=1,
                    appservices=APPSERVICES,
                )
            )
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


async def _caught_up(stage: Stage, running: Running, waiting: int, traffic: _Traffic) -> Figures:
    """Messages per second from the first request that was taken until none waited."""
    while True:
        await stage.until(1, running)
        seen = await stage.receivers.seen()
        if seen.messages >= waiting + traffic.sent - LATE:
            seconds = (time.monotonic_ns() - seen.first_ns) / 1e9
            return {
                "": (seen.messages - seen.first_messages) / seconds,
                "seconds": seconds,
                MEMORY: running.peak_memory_mb(),
            }
        await asyncio.sleep(LOOK_SECONDS)


async def _bridge(stage: Stage) -> Figures:
    traffic = _Traffic(capture_one)
    async with WAITING.waiting(stage, filling.fill_outbox) as (dsn, waiting):
        await stage.receivers.order(Order(manner=Manner.REFUSE))
        async with (
            stage.worker(dsn, APPSERVICES, delivery=RESTS) as worker,
            traffic.flowing(dsn),
        ):
            await asyncio.sleep(OUTAGE_SECONDS)
            await stage.receivers.order(Order())
            return await _caught_up(stage, worker, waiting, traffic)


async def _naive(stage: Stage) -> Figures:
    """It would ask without rest all the while: so it starts when the outage is over."""
    traffic = _Traffic(insert_naive)
    async with (
        FEWER.waiting(stage, filling.fill_naive) as (dsn, waiting),
        traffic.flowing(dsn),
        stage.yardstick("naive", dsn, APPSERVICES) as naive,
    ):
        figures = await _caught_up(stage, naive, waiting, traffic)
        return {"": figures[""]}  # it has less to catch up with


SCENARIOS: Final = (
    Scenario(
        name="catch-up",
        about=f"{WAITING.full:,} messages wait after an outage, {PER_SECOND} more come a second",
        units=RATE | {"seconds": "s"},
        sides={Side.BRIDGE: _bridge, Side.NAIVE: _naive},
    ),
)
