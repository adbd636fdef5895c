"""The network between one worker and the database fails; the others go on, and it does no harm."""

import asyncio
import signal
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.support.appservice import appservice
from tests.support.bridge import WorkerProcess, ready, registration, worker_process, write_files
from tests.support.facts import Connection, capture, wait_until
from tests.support.wire import Cable, cable
from tests.support.workers import once_and_in_order, pid, until_held, workers

BOT = "@b_1:example.org"
LISTENS = (
    "exists (select from pg_stat_activity where datname = current_database()"
    " and pid <> pg_backend_pid() and query ilike 'listen %')"
)


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
    async with asyncio.timeout(60):
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
            await until_held(pg, lambda counts: set(counts) == {pid(cut_off)})
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
            await bot.until(lambda: len(bot.to_device) == 2)
            await until_not_ready(cut_off)
            assert await is_ready(other)
            wire.flows.set()
            if not silently:
                await wire.mend()
            await ready(cut_off.files)
            await capture(pg, BOT, 3)
            await bot.until(lambda: len(bot.to_device) == 3)
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
    assert one.process is not None
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        with suppress(ProcessLookupError):  # it has ended already
            one.process.send_signal(number)
        await asyncio.sleep(0.1)
    return await asyncio.wait_for(one.process.wait(), within)


async def test_sigterm_while_an_appservice_hangs_ends_0_within_the_limit_and_seals_nothing(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        ours = [registration("bot", bot.url, users=["@b_.*"])]
        patient = {"timeout_seconds": 300}
        async with worker_process(write_files(tmp_path, database, ours, delivery=patient)) as one:
            bot.delay_seconds = 300
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.requests) == 1)
            await capture(pg, BOT, 2)
            assert await ended(one, 60) == 0
    assert await pg.fetchval("select count(*) from appservice_bridge.sealed") == 1
    assert await pg.fetchval("select worker_id from appservice_bridge.lane") is None


async def test_sigterm_finishes_the_request_in_flight_and_seals_nothing_after_it(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        ours = [registration("bot", bot.url, users=["@b_.*"])]
        async with worker_process(write_files(tmp_path, database, ours)) as one:
            bot.open.clear()
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.requests) == 1)
            await capture(pg, BOT, 2)  # when it is routed, it would be sealed with the ack
            await wait_until(pg, "select position = 2 from appservice_bridge.outbox_head")
            await wait_until(pg, f"select {LISTENS}")
            ending = asyncio.create_task(ended(one, 60))
            await wait_until(pg, f"select not {LISTENS}")  # it heard the signal
            bot.open.set()
            assert await ending == 0
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
            assert await ended(one, 60) == 0
        await pg.execute("rollback")
