"""How much memory a worker has while time goes on.

    python -m benchmarks.memory_over_time [--minutes 10] [--per-second 2000] [--hanging 1000]

Eight appservices get messages of 1 KB all the time; as many as are said hang, with 200 waiting for
each. RSS of the worker, in MiB, every 15 seconds.
"""

import argparse
import asyncio
import sys
import time
from typing import Final

import psutil  # type: ignore[import-untyped]
import uvloop

from appservice_bridge.bench import filling
from appservice_bridge.bench.receiver import Manner, Order
from appservice_bridge.bench.stage import MIB, Stage, connected
from appservice_bridge.storage.database import Connection

LIVE: Final = 8
BATCH: Final = 200
WAITING: Final = 200
EVERY_SECONDS: Final = 15.0


async def produce(conn: Connection, per_second: float, ends_at: float) -> int:
    """Returns how many there were."""
    began, written = time.monotonic(), 0
    while time.monotonic() < ends_at:
        await asyncio.sleep(max(0.0, began + written / per_second - time.monotonic()))
        numbers = range(written, written + BATCH)
        users = [filling.user(filling.appservice(n % LIVE), n % filling.USERS) for n in numbers]
        await filling.capture(conn, users, written + 1, filling.stored())
        written += BATCH
    return written


async def look(pid: int, began: float) -> None:
    worker = psutil.Process(pid)
    while True:
        seconds, memory = time.monotonic() - began, worker.memory_info().rss / MIB
        print(f"{seconds:6.0f} s {memory:7.1f} MiB", flush=True)
        await asyncio.sleep(EVERY_SECONDS)


async def main(given: argparse.Namespace) -> None:
    live = tuple(filling.appservice(n) for n in range(LIVE))
    everyone = LIVE + given.hanging
    async with Stage.open(quick=False) as stage, stage.database() as dsn:
        async with connected(dsn) as conn:
            await filling.fill_outbox(conn, appservices=everyone, messages=everyone * WAITING)
        await stage.receivers.order(Order(manner=Manner.HANG, good=live))
        async with stage.worker(dsn, everyone) as running, connected(dsn) as conn:
            looking = asyncio.create_task(look(running.child.pid, time.monotonic()))
            ends_at = time.monotonic() + 60 * given.minutes
            written = await produce(conn, given.per_second, ends_at)
            await stage.until(written + LIVE * WAITING, running)
            looking.cancel()
            print(f"{written:,} messages; at most {running.peak_memory_mb():.1f} MiB")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_over_time")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--per-second", type=float, default=2000.0)
    parser.add_argument("--hanging", type=int, default=1000)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(uvloop.run(main(arguments())))
