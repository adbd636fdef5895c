"""The same batch again is answered the same and stored once, whatever died in between."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
import asyncpg

from appservice_bridge.client import IngestClient
from appservice_bridge.dev.postgres import EmbeddedPostgres
from appservice_bridge.storage import ingest
from tests.delivery.test_kills import held_at, its_lease_ran_out, somebody_waits
from tests.support.appservice import appservice
from tests.support.bridge import SERVER, registration, worker, worker_process
from tests.support.facts import Connection
from tests.support.ingesting import (
    KEY,
    batch_of,
    ingest_files,
    message,
    one_bot,
    sender,
    signed,
)
from tests.support.wire import cable

BATCHES: Final = "select count(*) from appservice_bridge.ingest_batch"


async def test_case_12_the_same_batch_again_is_answered_the_same_and_delivered_once(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    facts = [message(1), message(2, to_user_id="@c_1:example.org"), message(3, content=[])]
    async with appservice() as bot:
        bots = [registration("bot", bot.url, users=["@b_.*"])]
        files = ingest_files(tmp_path, database, bots)
        async with worker(files), sender(files.relay_url) as hs:
            together = await asyncio.gather(*(hs.send("1", *facts) for _ in range(5)))
            first = together[0]
            assert first.verdicts == ["accepted", "dropped", "M_BAD_JSON"]
            assert {taken.raw for taken in together} == {first.raw}
            await bot.until(lambda: len(bot.to_device) == 1)
        bots = [registration("bot", bot.url, users=["@b_.*", "@c_.*"])]  # it is owned by now
        files = ingest_files(tmp_path / "again", database, bots)
        async with worker(files), sender(files.relay_url) as hs:
            indented = json.dumps(signed(batch_of("1", *facts)), indent=2).encode()
            assert (await hs.put("1", indented)).raw == first.raw
            assert (await hs.send("2", *facts[1:2])).verdicts == ["accepted"]
            await bot.until(lambda: len(bot.to_device) == 2)
    assert [item["content"]["n"] for item in bot.to_device] == [1, 2]
    repeated = "select items from appservice_bridge.ledger where kind = 'batch'"
    assert await pg.fetchval(repeated) == 5


async def test_case_12_other_facts_under_the_same_id_are_refused(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (bot, hs):
        await hs.send("1", message(1), message(2))
        for others in ([message(1)], [message(2), message(1)], [message(3)], []):
            assert (await hs.send("1", *others)).refusal == (409, "M_INVALID_PARAM")
        await hs.send("2", message(1), message(2))
        await bot.until(lambda: len(bot.to_device) == 4)
    assert [item["content"]["n"] for item in bot.to_device] == [1, 2, 1, 2]


async def test_a_batch_is_forgotten_after_thirty_days_and_not_before(
    pg: Connection,
) -> None:
    await pg.execute("set search_path = appservice_bridge")
    for days in (29, 31, 32):
        await pg.execute(
            "insert into ingest_batch values ($1, '', '', now() - make_interval(days => $2))",
            f"{days} days old",
            days,
        )
    assert await ingest.forget(pg, days=30, batch=1) == 1
    assert await ingest.forget(pg, days=30, batch=10) == 1
    assert await pg.fetchval("select string_agg(batch_id, ' ') from ingest_batch") == "29 days old"


@asynccontextmanager
async def held_in_commit(pg: Connection, database: str) -> AsyncIterator[None]:
    """Whoever commits a batch waits in the midst of it, until the context ends."""
    holder = await asyncpg.connect(database)
    await holder.execute("select pg_advisory_lock(7)")
    await pg.execute(
        """create function public.wait() returns trigger language plpgsql as
           $$ begin perform pg_advisory_xact_lock(7); return null; end $$;
           create constraint trigger wait after insert on appservice_bridge.ingest_batch
             deferrable initially deferred for each row execute function public.wait()"""
    )
    try:
        yield
    finally:
        await holder.close()
        await pg.execute("drop function public.wait cascade")


async def test_case_12_killed_between_commit_and_answer_the_retry_stores_nothing(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    """It is killed when Postgres has its COMMIT and has not answered; then that commit ends."""
    async with appservice() as bot, aiohttp.ClientSession() as session:
        files = ingest_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        client = IngestClient(session, files.relay_url, origin=SERVER, signing_key=KEY)
        async with worker_process(files) as killed:
            async with held_in_commit(pg, database):
                sending = asyncio.create_task(client.send([message(1), message(2)]))
                await somebody_waits(pg)
                await killed.kill()
                assert await pg.fetchval(BATCHES) == 0
            assert await pg.fetchval(BATCHES) == 1
            assert not sending.done()
            await its_lease_ran_out(pg)
            await killed.start()
            results = await asyncio.wait_for(sending, 60)
            await client.send([message(3)])
            await bot.until(lambda: len(bot.to_device) >= 3)
    assert results == [{"status": "accepted"}] * 2
    assert [item["content"]["n"] for item in bot.to_device] == [1, 2, 3]
    assert await pg.fetchval(BATCHES) == 2


async def test_case_12_killed_before_the_commit_the_retry_stores_it(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot, aiohttp.ClientSession() as session:
        files = ingest_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        client = IngestClient(session, files.relay_url, origin=SERVER, signing_key=KEY)
        async with worker_process(files) as killed:
            async with held_at(pg, database, "insert on appservice_bridge.capture_log"):
                sending = asyncio.create_task(client.send([message(1), message(2)]))
                await somebody_waits(pg)
                await killed.kill()
            assert await pg.fetchval(BATCHES) == 0
            await its_lease_ran_out(pg)
            await killed.start()
            await asyncio.wait_for(sending, 60)
            await bot.until(lambda: len(bot.to_device) >= 2)
    assert [item["content"]["n"] for item in bot.to_device] == [1, 2]
    assert await pg.fetchval(BATCHES) == 1


async def test_while_nothing_can_be_stored_it_is_answered_503_and_then_taken_once(
    pg: Connection, postgres_server: EmbeddedPostgres, database: str, tmp_path: Path
) -> None:
    number = postgres_server.port.number
    async with cable(number) as wire:
        through = database.replace(f":{number}/", f":{wire.port}/")
        async with one_bot(tmp_path, through) as (bot, hs):
            await wire.cut()
            for _ in range(3):
                assert (await hs.send("1", message(1))).refusal == (503, "M_UNKNOWN")
            assert await pg.fetchval(BATCHES) == 0
            await wire.mend()
            async with asyncio.timeout(60):
                while (await hs.send("1", message(1))).status != 200:
                    await asyncio.sleep(0.1)
            await hs.send("2", message(2))
            await bot.until(lambda: len(bot.to_device) >= 2)
    assert [item["content"]["n"] for item in bot.to_device] == [1, 2]
