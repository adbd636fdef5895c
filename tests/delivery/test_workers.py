"""Two to five workers on one database: each has its share, and what dies is taken over."""

import asyncio
import os
import random
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from tests.support.appservice import Appservice, Request, appservice, ok
from tests.support.bridge import Files, registration
from tests.support.facts import Connection, capture, wait_until
from tests.support.workers import (
    held,
    once_and_in_order,
    pid,
    tokens,
    until_held,
    workers,
)

ONE_OF = """
select min(l.appservice_id) from appservice_bridge.lane l
  join appservice_bridge.worker w using (worker_id) where w.name like $1
"""
LEASE_SECONDS = 10.0
NOISE_SECONDS = 20.0  # of a busy machine


def registrations(url: str, many: int) -> list[dict[str, Any]]:
    """Appservices that share a receiver; the n-th has the users that begin with its number."""
    return [registration(f"as{n}", url, users=[f"@b{n}_.*"]) for n in range(many)]


def shares(counts: Counter[int]) -> list[int]:
    return sorted(counts.values(), reverse=True)


def refuses(_request: Request) -> tuple[int, dict[str, str], bytes]:
    return 500, {}, b"{}"


async def feed(database: str, lane: int, facts: int) -> None:
    conn = await asyncpg.connect(database)
    for n in range(1, facts + 1):
        await capture(conn, f"@b{lane}_1:example.org", n)
        await asyncio.sleep(0.02)
    await conn.close()


def only(bot: Appservice, lane: int) -> Appservice:
    """What the shared receiver saw of one appservice."""
    token = f"hs_as{lane}"
    return Appservice(
        requests=[one for one in bot.requests if one.token == token],
        taken=[one for one in bot.taken if one.token == token],
    )


async def all_came(bot: Appservice, lanes: int, facts: int) -> None:
    async with asyncio.timeout(120):
        while any(len(only(bot, lane).to_device) < facts for lane in range(lanes)):
            await asyncio.sleep(0.2)


async def test_each_worker_gets_its_share_and_then_no_lane_moves(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with (
        appservice() as bot,
        workers(tmp_path, [database] * 3, registrations(bot.url, 7)),
    ):
        await until_held(pg, lambda counts: shares(counts) == [3, 2, 2])
        settled = await tokens(pg)
        await asyncio.sleep(3)
        assert await tokens(pg) == settled


async def test_a_lane_that_is_always_busy_moves_between_two_requests(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        bot.delay_seconds = 0.3
        ours = registrations(bot.url, 2)
        async with (
            workers(tmp_path, [database], ours, delivery={"max_items": 3}),
            asyncio.TaskGroup() as group,
        ):
            for lane in range(2):
                group.create_task(feed(database, lane, 200))
            async with workers(tmp_path / "b", [database], ours, delivery={"max_items": 3}):
                await until_held(pg, lambda counts: shares(counts) == [1, 1])
                bot.delay_seconds = 0
                await all_came(bot, 2, 200)
    assert all(once_and_in_order(only(bot, lane), 200) for lane in range(2))


async def test_the_lanes_of_a_killed_worker_are_shared_out_within_the_lease(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with (
        appservice() as bot,
        workers(tmp_path, [database] * 3, registrations(bot.url, 6)) as (doomed, *_),
    ):
        await until_held(pg, lambda counts: shares(counts) == [2, 2, 2])
        gone = pid(doomed)
        await doomed.kill()
        took = await until_held(pg, lambda counts: gone not in counts and shares(counts) == [3, 3])
        assert took < LEASE_SECONDS + NOISE_SECONDS


async def test_a_worker_that_is_stopped_hands_over_at_once(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with (
        appservice() as bot,
        workers(tmp_path, [database] * 2, registrations(bot.url, 6)) as (stopped, _),
    ):
        await until_held(pg, lambda counts: shares(counts) == [3, 3])
        assert await stopped.terminate() == 0
        assert await until_held(pg, lambda counts: shares(counts) == [6]) < LEASE_SECONDS


async def test_a_worker_that_waits_for_a_slow_answer_hands_over_its_idle_lanes_meanwhile(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with (
        appservice() as bot,
        workers(tmp_path, [database] * 2, registrations(bot.url, 6)) as (stopped, other),
    ):
        await until_held(pg, lambda counts: shares(counts) == [3, 3])
        bot.open.clear()
        lane = await pg.fetchval(ONE_OF, f"%:{pid(stopped)}")
        await capture(pg, f"@b{lane[2:]}_1:example.org", 1)
        await bot.until(lambda: len(bot.requests) == 1)
        os.kill(pid(stopped), signal.SIGTERM)
        await until_held(pg, lambda counts: (counts[pid(stopped)], counts[pid(other)]) == (1, 5))
        bot.open.set()
        await until_held(pg, lambda counts: shares(counts) == [6])


async def test_only_one_worker_holds_the_lane_and_relay_ingest_and_admin_answer_on_all(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with (
        appservice() as bot,
        workers(tmp_path, [database] * 3, [registration("bot", bot.url)]) as every,
        aiohttp.ClientSession() as session,
    ):
        await until_held(pg, lambda counts: shares(counts) == [1])
        for n, one in enumerate(every):
            assert await relayed(session, one.files, n) == 200
            assert await status(session, one.files.admin_url + "/ready") == 200
            ingest = one.files.relay_url + "/_appservice_bridge/v1/facts/1"
            async with session.put(ingest, data=b"no JSON") as answer:
                assert (await answer.json())["errcode"] == "M_NOT_JSON"
        await bot.until(lambda: len(bot.events) == 3)
        assert [event["event_id"] for event in bot.events] == ["$0", "$1", "$2"]


async def relayed(session: aiohttp.ClientSession, files: Files, number: int) -> int:
    url = files.relay("bot", f"/_matrix/app/v1/transactions/{number}")
    body = {"events": [{"event_id": f"${number}", "type": "m"}]}
    token = {"Authorization": "Bearer hs_bot"}
    async with session.put(url, json=body, headers=token) as answer:
        return answer.status


async def status(session: aiohttp.ClientSession, url: str) -> int:
    async with session.get(url) as answer:
        return answer.status


async def test_a_worker_frozen_while_it_rested_asks_before_it_sends_again(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    rests = {"backoff": {"first_seconds": 2, "ceiling_seconds": 2}}
    async with (
        appservice() as bot,
        workers(tmp_path, [database] * 2, registrations(bot.url, 1), delivery=rests) as both,
    ):
        await until_held(pg, lambda counts: shares(counts) == [1])
        (holder,) = await held(pg)
        bot.answer = refuses
        await capture(pg, "@b0_1:example.org", 1)
        await bot.until(lambda: len(bot.requests) == 1)
        await wait_until(pg, "select failed_attempts > 0 from appservice_bridge.lane")
        os.kill(holder, signal.SIGSTOP)
        assert holder in [pid(one) for one in both]
        bot.answer = ok
        await bot.until(lambda: len(bot.taken) == 1)
        await capture(pg, "@b0_1:example.org", 2)
        await bot.until(lambda: len(bot.taken) == 2)
        before = len(bot.requests)
        os.kill(holder, signal.SIGCONT)
        await asyncio.sleep(4)  # renewed by now, and its rest is over
        assert len(bot.requests) == before
    assert once_and_in_order(bot, 2)


async def test_five_workers_killed_at_random_lose_double_reorder_and_alter_nothing(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    shake = random.Random(5)
    lanes, facts = 5, 200
    async with appservice() as bot:
        bot.delay_seconds = 0.01
        ours = registrations(bot.url, lanes)
        async with workers(tmp_path, [database] * 5, ours, delivery={"max_items": 7}) as every:
            async with asyncio.TaskGroup() as group:
                for lane in range(lanes):
                    group.create_task(feed(database, lane, facts))
                for _ in range(6):
                    one = shake.choice(every)
                    await one.kill()
                    await one.start(wait=False)
                    await asyncio.sleep(shake.uniform(0.2, 1.5))
            await all_came(bot, lanes, facts)
    assert all(once_and_in_order(only(bot, lane), facts) for lane in range(lanes))
