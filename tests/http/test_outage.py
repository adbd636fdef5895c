"""While nothing can be stored the homeserver keeps it, and is woken as soon as it can be again."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
from aiohttp import web

from appservice_bridge.dev.postgres import EmbeddedPostgres
from appservice_bridge.domain.backoff import Backoff
from appservice_bridge.domain.registration import Registration
from appservice_bridge.http import wake_homeserver
from appservice_bridge.http.pass_through import PassThrough
from appservice_bridge.http.relay import Relay
from appservice_bridge.http.wake_homeserver import HomeserverWaker
from appservice_bridge.storage.database import Database
from appservice_bridge.storage.migrations import migrate
from tests.support.appservice import appservice
from tests.support.bridge import registration, worker, worker_process, write_files
from tests.support.relaying import PING, TRANSACTIONS, Homeserver, homeserver, relaying
from tests.support.standin import StandIn, standin_homeserver
from tests.support.wire import cable

EVENT = b'{"events":[{"event_id":"$1"}]}'
BACKWARDS = ["zwei/2", "one"]


@pytest.fixture
def own_postgres(pytestconfig: pytest.Config) -> Iterator[EmbeddedPostgres]:
    """A server that may be stopped, for it serves nobody else."""
    shm = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="outage-", dir=shm if shm.is_dir() else None))
    try:
        binaries = pytestconfig.getoption("postgres_binaries")
        where = directory / "postgres"
        with EmbeddedPostgres(where, durable=False, binaries=binaries) as server:
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def two_registrations(url: str) -> list[dict[str, Any]]:
    return [registration(f"r{n}", url) | {"id": one} for n, one in enumerate(BACKWARDS)]


def wake_pings(standin: StandIn) -> set[tuple[str, str]]:
    return {(ping.path, ping.token) for ping in standin.pings}


EVERYONE = {
    ("/_matrix/client/v1/appservice/zwei%2F2/ping", "as_r0"),
    ("/_matrix/client/v1/appservice/one/ping", "as_r1"),
}


async def test_a_stopped_database_is_answered_503_and_when_it_is_back_the_homeserver_is_woken(
    own_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    connection = await asyncpg.connect(own_postgres.dsn())
    await migrate(connection)
    await connection.close()
    async with appservice() as bot, standin_homeserver() as standin:
        both = two_registrations(bot.url)
        files = write_files(tmp_path, own_postgres.dsn(), both, homeserver_url=standin.url)
        async with worker(files), homeserver(files) as hs:
            for number, to in enumerate(("zwei%2F2", "one")):
                relay_ping = f"{files.relay_url}/appservice/{to}{PING}"
                standin.relay_ping_urls[f"as_r{number}"] = (relay_ping, f"hs_r{number}")
            await standin.until(lambda: wake_pings(standin) == EVERYONE)
            standin.pings.clear()

            own_postgres.stop()
            for _ in range(2):
                for to, token in (("zwei%2F2", "hs_r0"), ("one", "hs_r1")):
                    refused = await hs.ask(
                        "PUT", TRANSACTIONS + "1", to=to, token=token, body=EVENT
                    )
                    assert (refused.status, refused.errcode) == (503, "M_UNKNOWN")
            assert (await hs.ask("PUT", TRANSACTIONS + "1", to="one", token="no")).status == 403
            await asyncio.sleep(1.5)
            assert standin.pings == []

            own_postgres.start()
            await standin.until(lambda: wake_pings(standin) == EVERYONE)
            assert set(standin.relay_answers) == {200}
            assert bot.requests == []
            assert await hs.push("1", EVENT, to="one", token="hs_r1") == 200
            await bot.until(lambda: bot.events == [{"event_id": "$1"}])


async def test_an_outage_longer_than_all_tries_still_ends_with_a_wake(
    postgres_server: EmbeddedPostgres,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wake_homeserver, "_TRIES", 2)
    async with (
        appservice() as bot,
        standin_homeserver() as standin,
        cable(postgres_server.port.number) as wire,
    ):
        through = database.replace(f":{postgres_server.port.number}/", f":{wire.port}/")
        files = write_files(
            tmp_path, through, [registration("bot", bot.url)], homeserver_url=standin.url
        )
        async with worker(files), homeserver(files) as hs:
            await standin.until(lambda: len(standin.pings) == 1)
            for number in range(2):
                await wire.cut()
                assert await hs.push(str(number), EVENT) == 503
                await asyncio.sleep(1.5)
                assert len(standin.pings) == 1 + number
                await wire.mend()
                await standin.until(lambda: len(standin.pings) == 2 + number)  # noqa: B023


async def test_every_start_wakes_the_homeserver_for_it_may_have_been_refused(
    database: str, tmp_path: Path
) -> None:
    async with appservice() as bot, standin_homeserver() as standin:
        both = two_registrations(bot.url)
        async with relaying(tmp_path, database, both, homeserver_url=standin.url):
            await standin.until(lambda: wake_pings(standin) == EVERYONE)
    assert all(ping.body["transaction_id"].startswith("ab-wake-") for ping in standin.pings)
    ids = {ping.body["transaction_id"] for ping in standin.pings}
    assert len(ids) == len(standin.pings)


async def test_a_wake_that_may_succeed_later_is_tried_again(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = Backoff(first_seconds=0.1, ceiling_seconds=0.1)
    monkeypatch.setattr(wake_homeserver, "_BACKOFF", quick)
    async with appservice() as bot, standin_homeserver() as standin:
        one = [registration("bot", bot.url)]
        standin.status = 429
        async with relaying(tmp_path, database, one, homeserver_url=standin.url):
            await standin.until(lambda: len(standin.pings) == 2)
            standin.status = 502
            await standin.until(lambda: len(standin.pings) == 4)
            standin.status = 200
            await standin.until(lambda: len(standin.pings) == 5)
            await asyncio.sleep(0.5)
            assert len(standin.pings) == 5


async def test_a_homeserver_that_knows_no_pings_is_left_alone(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = Backoff(first_seconds=0.1, ceiling_seconds=0.1)
    monkeypatch.setattr(wake_homeserver, "_BACKOFF", quick)
    async with appservice() as bot, standin_homeserver() as standin:
        standin.status = 404
        one = [registration("bot", bot.url)]
        async with relaying(tmp_path, database, one, homeserver_url=standin.url):
            await standin.until(lambda: len(standin.pings) == 1)
            await asyncio.sleep(0.5)
            assert len(standin.pings) == 1


@asynccontextmanager
async def relay_alone(dsn: str) -> AsyncIterator[Homeserver]:
    """The relay without a worker around it, so that what breaks is seen at the relay."""
    one = Registration(
        id="bot", url=None, as_token="as", hs_token="hs_bot", sender_localpart="b", source=""
    )
    every = {"bot": one}
    async with Database.open(dsn) as database, aiohttp.ClientSession() as session:
        waker = HomeserverWaker(database, session, "http://127.0.0.1:9", every)
        relay = Relay(database, every, every, PassThrough(session), waker, lambda: None)
        runner = web.AppRunner(relay.application(), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        try:
            yield Homeserver(session=session, relay_url=f"http://{host}:{port}")
        finally:
            await runner.cleanup()


async def test_whatever_else_the_database_refuses_is_503_too_and_passes(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str
) -> None:
    faults = [
        ("alter table relayed rename to gone", "alter table gone rename to relayed"),
        ("alter table capture_log rename kind to k", "alter table capture_log rename k to kind"),
        (
            "alter table capture_log add constraint no check (body is null) not valid",
            "alter table capture_log drop constraint no",
        ),
    ]
    await pg.execute("set search_path = appservice_bridge")
    async with relay_alone(database) as hs:
        for number, (breaking, mending) in enumerate(faults):
            await pg.execute(breaking)
            refused = await hs.ask("PUT", f"{TRANSACTIONS}{number}", body=EVENT)
            assert (refused.status, refused.errcode) == (503, "M_UNKNOWN"), breaking
            await pg.execute(mending)
            assert 200 in [await hs.push(str(number), EVENT) for _ in range(2)], breaking


async def test_a_read_only_database_is_answered_503(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str
) -> None:
    async with relay_alone(database) as hs:
        assert await hs.push("1", EVENT) == 200
        name = database.rsplit("/", 1)[1].split("?")[0]
        await pg.execute(f"alter database {name} set default_transaction_read_only = on")
        await pg.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        assert {await hs.push("2", EVENT) for _ in range(2)} == {503}


async def test_a_homeserver_that_is_away_is_asked_once_a_round_not_once_an_appservice(
    database: str, tmp_path: Path
) -> None:
    ours = [registration(f"r{n}", "http://127.0.0.1:9", users=[f"@r{n}_.*"]) for n in range(20)]
    files = write_files(tmp_path, database, ours)
    async with worker_process(files) as one, asyncio.timeout(60):
        while one.log.read_bytes().count(b"homeserver.not_reached") < 2:
            await asyncio.sleep(0.1)
        assert one.log.read_bytes().count(b"homeserver.not_reached") < 10
