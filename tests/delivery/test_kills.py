"""A worker process killed with SIGKILL inside and between its commits; see each point's name."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from tests.support.appservice import Request, appservice, ok
from tests.support.bridge import WorkerProcess, registration, worker_process, write_files
from tests.support.facts import Connection, capture

BOT = "@b_1:example.org"


@asynccontextmanager
async def held_at(pg: Connection, database: str, change: str) -> AsyncIterator[None]:
    """Whoever makes this change waits inside his DB transaction until the context ends."""
    holder = await asyncpg.connect(database)
    await holder.execute("select pg_advisory_lock(7)")
    await pg.execute(
        f"""create function public.wait() returns trigger language plpgsql as
            $$ begin perform pg_advisory_xact_lock(7); return null; end $$;
            create trigger wait after {change} for each statement execute function public.wait()"""
    )
    try:
        yield
    finally:
        await holder.close()
        await pg.execute("drop function public.wait cascade")


END_WHO_WAITS = """
select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and not granted
"""


async def somebody_waits(pg: Connection) -> None:
    waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
    async with asyncio.timeout(60):
        while not await pg.fetchval(waiting):
            pass


async def its_lease_ran_out(pg: Connection) -> None:
    """The worker is dead; only the wait for its lease is cut short."""
    await pg.execute("update appservice_bridge.worker set alive_until = clock_timestamp()")


@pytest.mark.parametrize(
    "change",
    [
        "insert on appservice_bridge.outbox",  # intake, before its commit
        "insert on appservice_bridge.sealed",  # a seal, before its commit
        "update on appservice_bridge.intake_gate",  # intake's last write
    ],
)
async def test_case_14_killed_before_a_commit_it_does_the_same_again(
    pg: Connection, database: str, tmp_path: Path, change: str
) -> None:
    async with appservice() as bot:
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with worker_process(files) as killed:
            async with held_at(pg, database, change):
                for n in range(1, 4):
                    await capture(pg, BOT, n)
                await somebody_waits(pg)
                await killed.kill()
                await its_lease_ran_out(pg)
            assert bot.requests == []
            await killed.start()
            await bot.until(lambda: len(bot.to_device) == 3)
    assert [item["content"]["n"] for item in bot.to_device] == [1, 2, 3]


async def test_case_14_killed_between_seal_and_answer_it_sends_the_same_id_and_bytes(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with worker_process(files) as killed:
            bot.answer = dies(killed)
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.requests) == 1)
            await killed.kill()
            await its_lease_ran_out(pg)
            await capture(pg, BOT, 2)  # may not slip into what is sealed
            bot.answer = ok
            await killed.start()
            await bot.until(lambda: len(bot.to_device) == 2)
    first, again, _ = bot.requests
    assert (first.path, first.body) == (again.path, again.body)


def dies(worker: WorkerProcess):  # type: ignore[no-untyped-def]
    def answer(request: Request) -> tuple[int, dict[str, str], bytes]:
        assert worker.process is not None
        worker.process.kill()
        return 500, {}, b""

    return answer


async def test_case_14_killed_between_the_200_and_the_mark_it_sends_the_same_id_and_bytes(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with worker_process(files) as killed:
            async with held_at(pg, database, "delete on appservice_bridge.sealed"):
                await capture(pg, BOT, 1)
                await bot.until(lambda: len(bot.taken) == 1)
                await somebody_waits(pg)
                await killed.kill()
                await pg.execute(END_WHO_WAITS)  # else Postgres would still commit what it began
                await its_lease_ran_out(pg)
            await capture(pg, BOT, 2)
            await killed.start()
            await bot.until(lambda: len(bot.to_device) == 2)
    first, again, following = bot.taken
    assert (first.path, first.body) == (again.path, again.body)
    assert following.txn_id != first.txn_id
    assert [item["content"]["n"] for item in bot.to_device] == [1, 2]


async def test_many_kills_at_random_lose_double_reorder_and_alter_nothing(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    facts = 600

    async def feed() -> None:
        for n in range(1, facts + 1):
            await capture(pg, BOT, n)
            await asyncio.sleep(0.005)

    async with appservice() as bot:
        bot.delay_seconds = 0.01
        files = write_files(
            tmp_path,
            database,
            [registration("bot", bot.url, users=["@b_.*"])],
            delivery={"max_items": 7},
        )
        async with worker_process(files) as killed:
            feeding = asyncio.create_task(feed())
            for pause in (0.3, 0.05, 0.7, 0.2):
                await asyncio.sleep(pause)
                await killed.kill()
                await killed.start()
            await feeding
            await bot.until(lambda: len(bot.to_device) >= facts)
    assert [item["content"]["n"] for item in bot.to_device] == list(range(1, facts + 1))
    bodies: dict[str, set[bytes]] = {}
    for request in bot.requests:
        bodies.setdefault(request.txn_id, set()).add(request.body)
    assert all(len(seen) == 1 for seen in bodies.values())


async def test_sigterm_finishes_what_is_in_flight_and_ends_0(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with worker_process(files) as stopped:
            bot.delay_seconds = 0.7
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.requests) == 1)
            assert await stopped.terminate() == 0
    assert len(bot.taken) == 1
    assert await pg.fetchval("select acked_to from appservice_bridge.lane") == 1
    assert await pg.fetchval("select worker_id from appservice_bridge.lane") is None
