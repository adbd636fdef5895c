"""What is around a worker dies: the database, or another worker."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from appservice_bridge.dev.postgres import EmbeddedPostgres
from appservice_bridge.storage.database import connect
from appservice_bridge.storage.migrations import migrate
from tests.support.appservice import appservice
from tests.support.bridge import Files, registration, worker_process, write_files
from tests.support.facts import Connection, capture

BOT = "@b_1:example.org"


async def relay_answers(files: Files, number: int) -> int:
    body = {"events": [{"event_id": f"${number}", "type": "m"}]}
    async with (
        aiohttp.ClientSession(headers={"Authorization": "Bearer hs_bot"}) as session,
        session.put(
            files.relay("bot", f"/_matrix/app/v1/transactions/{number}"), json=body
        ) as answer,
    ):
        return answer.status


async def test_a_database_killed_under_the_worker_loses_nothing_and_the_relay_says_503(
    tmp_path: Path,
) -> None:
    with EmbeddedPostgres(tmp_path / "postgres") as server:
        conn = await asyncpg.connect(server.dsn())
        await migrate(conn)
        await conn.close()
        async with appservice() as bot:
            ours = [registration("bot", bot.url, users=["@b_.*"])]
            files = write_files(tmp_path / "bridge", server.dsn(), ours)
            async with worker_process(files) as one:
                assert await relay_answers(files, 1) == 200
                await bot.until(lambda: len(bot.events) == 1)
                bot.delay_seconds = 0.5
                assert await relay_answers(files, 2) == 200
                await bot.until(lambda: len(bot.requests) == 2)
                os.kill(server.child.pid, signal.SIGKILL)  # between the 200 to come and its mark
                await asyncio.sleep(1)
                assert await relay_answers(files, 3) == 503
                bot.delay_seconds = 0
                await asyncio.to_thread(server.start)
                async with asyncio.timeout(60):
                    while await relay_answers(files, 3) != 200:
                        await asyncio.sleep(0.2)
                await bot.until(lambda: len(bot.events) == 3)
                assert one.process is not None
                assert one.process.returncode is None
    assert [event["event_id"] for event in bot.events] == ["$1", "$2", "$3"]
    bodies = {(request.txn_id, request.body) for request in bot.requests}
    assert len(bodies) == len({request.txn_id for request in bot.requests})


async def test_the_lane_of_a_killed_worker_moves_to_another_within_the_lease(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        ours = [registration("bot", bot.url, users=["@b_.*"])]
        first, second = (write_files(tmp_path / name, database, ours) for name in ("a", "b"))
        async with worker_process(first) as doomed:
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.to_device) == 1)
            async with worker_process(second):
                bot.delay_seconds = 0.5
                await capture(pg, BOT, 2)
                await bot.until(lambda: len(bot.requests) == 2)
                await doomed.kill()
                bot.delay_seconds = 0
                await capture(pg, BOT, 3)
                await bot.until(lambda: len(bot.to_device) == 3)
    assert [item["content"]["n"] for item in bot.to_device] == [1, 2, 3]
    again = [r for r in bot.requests if r.txn_id == bot.requests[1].txn_id]
    assert {request.body for request in again} == {bot.requests[1].body}


@pytest.mark.parametrize("starts", [False, True])
async def test_a_worker_stopped_in_the_midst_of_a_statement_keeps_neither_gate_nor_lane(
    database: str, tmp_path: Path, starts: bool
) -> None:
    async with appservice() as bot:
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with worker_process(files) as one, session_of_ours(database) as stopped:
            if starts:
                assert await one.terminate() == 0
            await stopped.execute("begin")
            await stopped.execute("select * from appservice_bridge.intake_gate for update")
            await stopped.execute("select * from appservice_bridge.lane for update")
            await stopped.prepare("select * from appservice_bridge.lane")
            if starts:
                await one.start()
            assert await relay_answers(files, 1) == 200
            await bot.until(lambda: len(bot.events) == 1)


@asynccontextmanager
async def session_of_ours(database: str) -> AsyncIterator[Connection]:
    """A DB session with the settings of a worker's."""
    one = await connect(database)
    try:
        yield one
    finally:
        one.terminate()


async def test_a_worker_starts_beside_one_that_is_frozen_with_the_gate_in_its_hands(
    database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        frozen = await asyncpg.connect(database)
        await frozen.execute("begin; select * from appservice_bridge.intake_gate for update")
        cut = asyncio.get_running_loop().call_later(8, frozen.terminate)  # as its session would be
        async with worker_process(files) as one:
            assert one.process is not None
            assert one.process.returncode is None
            assert await relay_answers(files, 1) == 200
            await bot.until(lambda: len(bot.events) == 1)
        cut.cancel()
