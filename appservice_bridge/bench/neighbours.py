"""Appservices that are dead, hang or have nothing to do: what they cost the worker and others."""

import asyncio
from typing import Final

from appservice_bridge.bench import filling
from appservice_bridge.bench.drain import Drain, rate
from appservice_bridge.bench.figures import Side
from appservice_bridge.bench.latency import UNITS, capture_one, windows
from appservice_bridge.bench.receiver import Manner, Order
from appservice_bridge.bench.scenario import MEMORY, Figures, Scenario
from appservice_bridge.bench.stage import Running, Stage, connected

DEAD: Final = 100
EACH: Final = 200  # messages that wait for each of the dead
LIVE: Final = filling.appservice(0)
QUIET_SECONDS: Final = 5.0
READ_AGAIN: Final = "config.unchanged"
"""What a worker logs when it has read all registrations once more, some time after its start."""
PATIENCE_SECONDS: Final = 30.0  # for lanes that a budget of what is in flight holds back
MANY: Final = 1000

MORE_FOR_THE_LIVE: Final = """
-- bench.more_for_the_live
update outbox_head set position = position + $2, bytes_in = bytes_in + $2 * 1000
 where appservice_id = $1
"""

NOT_SERVED: Final = """
-- bench.not_served: lanes that nobody holds yet, and appservices that are not live
select (select count(*) from lane where worker_id is null)
       + (select count(*) from appservice where live_at is null)
       + $1 - (select count(*) from lane)
"""


async def _one_live(stage: Stage, dead: int) -> Figures:
    """Its backlog is drained, then it gets what is sent to it; the others never take anything."""
    backlog = stage.size(100_000, quick=20_000)
    order = Order(manner=Manner.DEAD, good=(LIVE,))
    async with stage.database() as dsn:
        async with connected(dsn) as conn:
            await filling.fill_outbox(conn, appservices=dead + 1, messages=(dead + 1) * EACH)
            await filling.fill_more(conn, first=EACH, messages=backlog)
            await conn.execute(MORE_FOR_THE_LIVE, LIVE, backlog)
        await stage.receivers.order(order)
        async with stage.worker(dsn, dead + 1, ready=False) as worker:
            await stage.until(backlog + EACH, worker)
            drained = rate(await stage.receivers.seen())
            timed = Order(manner=Manner.DEAD, good=(LIVE,), timed=True)
            late = await windows(stage, worker, dsn, capture_one, appservices=1, order=timed)
            return {**late, "drain": drained}


async def _beside_dead(stage: Stage) -> Figures:
    return await _one_live(stage, DEAD)


async def _alone(stage: Stage) -> Figures:
    return await _one_live(stage, 0)


async def _idle(stage: Stage) -> Figures:
    """A worker that holds a thousand lanes where nothing comes, when its start is behind it."""
    await stage.receivers.order(Order())
    seconds = stage.size(60, quick=5)
    async with stage.database() as dsn, stage.worker(dsn, MANY) as worker:
        async with connected(dsn) as conn:
            while await conn.fetchval(NOT_SERVED, MANY):
                worker.child.require_running()
                await asyncio.sleep(0.1)
        while READ_AGAIN not in worker.child.command.log.read_text(errors="replace"):
            worker.child.require_running()
            await asyncio.sleep(1)
        await asyncio.sleep(QUIET_SECONDS)
        loop = asyncio.get_running_loop()
        busy, began = worker.busy_seconds(), loop.time()
        await asyncio.sleep(seconds)
        busy, took = worker.busy_seconds() - busy, loop.time() - began
        return {"": 100 * busy / took, MEMORY: worker.peak_memory_mb()}


async def _hanging(stage: Stage) -> Figures:
    """Every lane has much to send, and none gets an answer."""
    waiting = Drain(appservices=MANY, full=MANY * 1000, quick=MANY * 300)
    patient = {"timeout_seconds": 600}
    async with waiting.waiting(stage, filling.fill_outbox) as (dsn, _):
        await stage.receivers.order(Order(manner=Manner.HANG))
        async with stage.worker(dsn, MANY, ready=False, delivery=patient) as worker:
            requests = await _all_hang(stage, worker)
            await asyncio.sleep(QUIET_SECONDS)
            return {"": worker.peak_memory_mb(), "requests": float(requests)}


async def _all_hang(stage: Stage, worker: Running) -> int:
    """Wait until every lane has a request in flight, or long no other has; returns how many."""
    loop = asyncio.get_running_loop()
    hanging, moved = 0, loop.time()
    while hanging < MANY and loop.time() < moved + PATIENCE_SECONDS:
        worker.child.require_running()
        seen = await stage.receivers.seen()
        if seen.open > hanging:
            hanging, moved = seen.open, loop.time()
        await asyncio.sleep(0.1)
    return hanging


SCENARIOS: Final = (
    Scenario(
        name="dead-100",
        about="100 appservices hang, refuse or cut off, one is well; beside that one alone",
        units={**UNITS, "drain": "messages/s"},
        sides={Side.BRIDGE: _beside_dead, Side.SMALL: _alone},
    ),
    Scenario(
        name="hanging-1000",
        about="memory while 1,000 appservices with much to take never answer; requests in flight",
        units={"": "MB", "requests": "requests"},
        sides={Side.BRIDGE: _hanging},
    ),
    Scenario(
        name="idle",
        about="CPU of a worker with 1,000 lanes where nothing comes",
        units={"": "% of a core", MEMORY: "MB"},
        sides={Side.BRIDGE: _idle},
    ),
)
