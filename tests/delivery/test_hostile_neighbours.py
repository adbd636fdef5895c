"""A healthy appservice beside hostile ones on one worker: what they do is not its business."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from tests.faults.hostile import answering
from tests.faults.receiver import Log
from tests.support.appservice import Appservice, appservice, by_hand
from tests.support.bridge import registration, worker_process, write_files
from tests.support.facts import Connection, message, wait_until
from tests.support.workers import once_and_in_order

HOSTILE: Final = ("hang", "flood", "garbage", "refuse")
MESSAGES: Final = 40
EVERY_SECONDS: Final = 0.05
TIMEOUT_SECONDS: Final = 5.0  # so long waits who waits for one that hangs
MOST_TIMES: Final = 4
SLACK_SECONDS: Final = 0.1
CAPTURE: Final = """
with sent as (
    insert into appservice_bridge.capture_log (kind, user_id, device_id, stream_id, body)
    select 'to_device', '@' || name || '_1:example.org', 'DEV', $2, $3
      from unnest($1::text[]) with ordinality as u(name, place) order by place
)
select pg_notify('appservice_bridge_capture', '')
"""
IN_TROUBLE: Final = """
select count(*) = 4 from appservice_bridge.sealed where appservice_id <> 'healthy'
"""


@asynccontextmanager
async def hostile_urls(directory: Path) -> AsyncIterator[dict[str, str]]:
    """One appservice of each kind, with its url."""
    async with AsyncExitStack() as stack:
        yield {
            mode: await stack.enter_async_context(
                by_hand(answering(mode, Log(str(directory / f"{mode}.log"))))
            )
            for mode in HOSTILE
        }


async def send(pg: Connection, numbers: Sequence[int], *to: str) -> None:
    """One message at a time to each of these, with the time in it."""
    for n in numbers:
        await pg.execute(CAPTURE, to, n, message(n=n, at=time.monotonic()).encode())
        await asyncio.sleep(EVERY_SECONDS)


def latencies(seen: Appservice) -> list[float]:
    """Of each message, from before it was written to when it first came, in seconds."""
    came: dict[int, float] = {}
    for request in seen.requests:
        for item in request.items("de.sorunome.msc2409.to_device"):
            came.setdefault(item["content"]["n"], request.began - item["content"]["at"])
    return [came[n] for n in sorted(came)]


async def test_case_22_what_hostile_appservices_do_moves_no_healthy_one_s_latency(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as healthy, hostile_urls(tmp_path) as urls:
        everyone = [
            registration(name, url, users=[f"@{name}_.*"])
            for name, url in (urls | {"healthy": healthy.url}).items()
        ]
        delivery = {"timeout_seconds": TIMEOUT_SECONDS}
        async with worker_process(write_files(tmp_path, database, everyone, delivery=delivery)):
            await send(pg, range(1, MESSAGES + 1), "healthy")
            await healthy.until(lambda: len(healthy.to_device) == MESSAGES)
            await send(pg, [0], *HOSTILE)
            await wait_until(pg, IN_TROUBLE)
            await send(pg, range(MESSAGES + 1, 2 * MESSAGES + 1), *HOSTILE, "healthy")
            await healthy.until(lambda: len(healthy.to_device) == 2 * MESSAGES)
            assert await pg.fetchval(IN_TROUBLE)
    assert once_and_in_order(healthy, 2 * MESSAGES)
    of_each = latencies(healthy)
    alone, beside = (statistics.median(of_each[n : n + MESSAGES]) for n in (0, MESSAGES))
    print(f"alone {alone * 1000:.0f} ms, beside hostile ones {beside * 1000:.0f} ms")
    assert beside < MOST_TIMES * alone + SLACK_SECONDS
