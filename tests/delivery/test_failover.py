"""The primary dies under a worker that knows both hosts: it goes on without a restart."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from appservice_bridge.dev.postgres import EmbeddedPostgres
from appservice_bridge.storage import hosts
from appservice_bridge.storage.database import Database, DatabaseUnavailableError, connect
from appservice_bridge.storage.migrations import migrate
from tests.support.appservice import appservice
from tests.support.bridge import Files, registration, worker_process, write_files
from tests.support.standby import both_hosts, following, promote

TOKEN = {"Authorization": "Bearer hs_bot"}


@pytest.fixture
def pair(
    tmp_path: Path, pytestconfig: pytest.Config
) -> Iterator[tuple[EmbeddedPostgres, EmbeddedPostgres]]:
    """A primary and its synchronous standby."""
    binaries = pytestconfig.getoption("postgres_binaries")
    with (
        EmbeddedPostgres(tmp_path / "first", binaries=binaries) as first,
        following(first, tmp_path / "second") as second,
    ):
        asyncio.run(migrated(first))
        yield first, second


async def migrated(server: EmbeddedPostgres) -> None:
    conn = await asyncpg.connect(server.dsn())
    await migrate(conn)
    await conn.close()


async def push(session: aiohttp.ClientSession, files: Files, number: int) -> None:
    """What a homeserver does: the same transaction until it is answered 200."""
    url = files.relay("bot", f"/_matrix/app/v1/transactions/{number}")
    body = {"events": [{"event_id": f"${number}", "type": "m"}]}
    async with asyncio.timeout(60):
        while True:
            async with session.put(url, json=body, headers=TOKEN) as answer:
                assert answer.status in (200, 503)
                if answer.status == 200:
                    return
            await asyncio.sleep(0.05)


async def test_a_failover_loses_nothing_acknowledged_and_repeats_no_id_with_other_bytes(
    pair: tuple[EmbeddedPostgres, EmbeddedPostgres], tmp_path: Path
) -> None:
    first, second = pair
    async with appservice() as bot, aiohttp.ClientSession() as session:
        dsn = both_hosts(first, second)
        files = write_files(tmp_path / "bridge", dsn, [registration("bot", bot.url)])
        async with worker_process(files) as one:
            for n in range(1, 51):
                await push(session, files, n)
            await bot.until(lambda: len(bot.events) == 50)
            bot.delay_seconds = 0.5
            await push(session, files, 51)
            await bot.until(lambda: len(bot.requests) >= 1 and bot.running == 1)
            os.kill(first.child.pid, signal.SIGKILL)
            await asyncio.to_thread(promote, second)
            bot.delay_seconds = 0
            for n in range(52, 81):
                await push(session, files, n)
            await bot.until(lambda: len(bot.events) == 80)
            assert one.process is not None
            assert one.process.returncode is None
    assert [event["event_id"] for event in bot.events] == [f"${n}" for n in range(1, 81)]
    bodies = {(request.txn_id, request.body) for request in bot.requests}
    assert len(bodies) == len({request.txn_id for request in bot.requests})
    assert len({request.txn_id.split("-")[0] for request in bot.requests}) == 2


@dataclass(kw_only=True)
class Deaf:
    """A port that takes connections and never says a word, as a host that hangs."""

    port: int = 0
    visits: int = 0

    async def visited(self, *_: object) -> None:
        self.visits += 1
        await asyncio.sleep(60)


@pytest.fixture
async def deaf(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Deaf]:
    monkeypatch.setattr(hosts, "CONNECT_SECONDS", 4)
    one = Deaf()
    server = await asyncio.start_server(one.visited, "127.0.0.1", 0)
    one.port = server.sockets[0].getsockname()[1]
    yield one
    server.close()


async def test_a_first_host_that_never_answers_does_not_keep_us_from_the_second(
    database: str, deaf: Deaf
) -> None:
    dsn = (
        database.replace("@127", f"@127.0.0.1:{deaf.port},127", 1) + "&target_session_attrs=primary"
    )
    conn = await connect(dsn)
    assert await conn.fetchval("select 1") == 1
    await conn.close()
    async with Database.open(dsn) as opened:
        before = deaf.visits
        async with opened.transaction(), opened.transaction() as conn:
            assert await conn.fetchval("select 1") == 1
        assert deaf.visits == before > 0  # the one that served is asked first


async def test_hosts_that_all_refuse_are_an_outage(deaf: Deaf) -> None:
    dsn = f"postgresql://nobody@127.0.0.1:9,127.0.0.1:{deaf.port}/x?sslmode=disable"
    with pytest.raises(DatabaseUnavailableError):
        await connect(dsn)
