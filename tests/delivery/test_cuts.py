"""The network between one worker and the database fails; the others go on, and it does no harm."""

import asyncio
import os
import signal
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.support.appservice import appservice
from tests.support.bridge import WorkerProcess, ready, registration, worker_process, write_files
from tests.support.facts import Connection, capture
from tests.support.wire import Cable, cable
from tests.support.workers import held, once_and_in_order, pid, until_held, workers

BOT = "@b_1:example.org"


def through(database: str, wire: Cable) -> str:
    """The same database at the cable's near end."""
    parts = urlsplit(database)
    user = parts.netloc.rpartition("@")[0]
    return parts._replace(netloc=f"{user}@127.0.0.1:{wire.port}").geturl()


def wire_to(database: str) -> AbstractAsyncContextManager[Cable]:
    port = urlsplit(database).port
    assert port is not None
    return cable(port)


async def is_ready(one: WorkerProcess) -> bool:
    async with (
        aiohttp.ClientSession() as session,
        session.get(one.files.admin_url + "/ready") as answer,
    ):
        return answer.status == 200


async def until_not_ready(one: WorkerProcess) -> None:
    async with asyncio.timeout(30):
        while await is_ready(one):
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("silently", [False, True])
async def test_a_worker_without_its_database_is_red_and_its_lane_moves_within_the_lease(
    pg: Connection, database: str, tmp_path: Path, silently: bool
) -> None:
    async with appservice() as bot, wire_to(database) as wire:
        ours = [registration("bot", bot.url, users=["@b_.*"])]
        near = through(database, wire)
        async with workers(tmp_path, [near, database], ours) as (cut_off, other):
            assert set(await held(pg)) == {pid(cut_off)}
            bot.delay_seconds = 0.5
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.requests) == 1)
            if silently:
                wire.flows.clear()
            else:
                await wire.cut()
            bot.delay_seconds = 0
            await capture(pg, BOT, 2)
            await until_held(pg, lambda counts: set(counts) == {pid(other)})
            await bot.until(lambda: len(bot.to_device) == 2, within=45)
            await until_not_ready(cut_off)
            assert await is_ready(other)
            wire.flows.set()
            if not silently:
                await wire.mend()
            await ready(cut_off.files, within=60)
            await capture(pg, BOT, 3)
            await bot.until(lambda: len(bot.to_device) == 3, within=45)
    assert once_and_in_order(bot, 3)


@pytest.mark.parametrize("silently", [False, True])
async def test_sigterm_without_a_database_ends_0_within_the_limit(
    pg: Connection, database: str, tmp_path: Path, silently: bool
) -> None:
    async with appservice() as bot, wire_to(database) as wire:
        ours = [registration("bot", bot.url, users=["@b_.*"])]
        async with worker_process(write_files(tmp_path, through(database, wire), ours)) as one:
            if silently:
                wire.flows.clear()
            else:
                await wire.cut()
            await capture(pg, BOT, 1)
            await asyncio.sleep(1)
            assert await ended(one, 60) == 0


async def ended(one: WorkerProcess, within: float) -> int:
    """Stop it as an impatient operator does: SIGTERM, and again, and Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        os.kill(pid(one), number)
        await asyncio.sleep(0.1)
    assert one.process is not None
    return await asyncio.wait_for(one.process.wait(), within)


async def test_sigterm_while_an_appservice_hangs_ends_0_within_the_limit_and_seals_nothing(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        ours = [registration("bot", bot.url, users=["@b_.*"])]
        async with worker_process(write_files(tmp_path, database, ours)) as one:
            bot.delay_seconds = 120
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.requests) == 1)
            await capture(pg, BOT, 2)
            began = time.monotonic()
            assert await ended(one, 60) == 0
            assert time.monotonic() - began < 30
    assert await pg.fetchval("select count(*) from appservice_bridge.sealed") == 1
    assert await pg.fetchval("select worker_id from appservice_bridge.lane") is None


async def test_sigterm_finishes_the_request_in_flight_and_seals_nothing_after_it(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        ours = [registration("bot", bot.url, users=["@b_.*"])]
        async with worker_process(write_files(tmp_path, database, ours)) as one:
            bot.delay_seconds = 5
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.requests) == 1)
            await capture(pg, BOT, 2)
            async with asyncio.timeout(4):  # it is routed, and would be sealed with the ack
                while await pg.fetchval("select position from appservice_bridge.outbox_head") < 2:
                    await asyncio.sleep(0.05)
            assert await ended(one, 30) == 0
    assert len(bot.requests) == 1
    assert await pg.fetchval("select acked_to from appservice_bridge.lane") == 1
    assert await pg.fetchval("select count(*) from appservice_bridge.sealed") == 0
    assert await pg.fetchval("select position from appservice_bridge.outbox_head") == 2


async def test_sigterm_while_an_appservice_goes_live_ends_0(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        await pg.execute("begin")
        await pg.execute("select pg_current_xact_id()")  # what began before is waited for
        ours = [registration("bot", bot.url, users=["@b_.*"])]
        async with worker_process(write_files(tmp_path, database, ours)) as one:
            assert await ended(one, 20) == 0
        await pg.execute("rollback")
