"""`/metrics`: true, for those who may ask, cheap however many do, and there without a database."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import asyncpg
import yaml
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from appservice_bridge.domain.budget import Budget
from appservice_bridge.http.metrics import Measured, Metrics
from appservice_bridge.storage.database import Database
from appservice_bridge.telemetry import catalogue
from appservice_bridge.telemetry.deliveries import DeliveryMetrics
from appservice_bridge.telemetry.sheet import PREFIX, Figure
from tests.support.appservice import appservice
from tests.support.bridge import Files, registration, worker, worker_process, write_files
from tests.support.connecting import files_for, polling
from tests.support.facts import Connection, capture
from tests.support.relaying import homeserver
from tests.support.reloading import change, operator, register, with_tokens

BOT: Final = "@b_1:example.org"
FIGURES: Final = [one for one in vars(catalogue).values() if isinstance(one, Figure)]
WHERE_NOTHING_IS: Final = {"failing_since_timestamp_seconds", "last_ack_timestamp_seconds"}


class Scrape(dict[tuple[str, frozenset[tuple[str, str]]], float]):
    """The samples of one scrape, by name and labels."""

    def of(self, name: str, **labels: str) -> float | None:
        return self.get((PREFIX + name, frozenset(labels.items())))

    def labels(self, key: str) -> set[str]:
        return {value for _, labels in self for label, value in labels if label == key}


def parsed(text: str) -> Scrape:
    return Scrape(
        {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    )


async def scraped(url: str, **headers: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(url + "/metrics", headers=headers) as answer,
    ):
        return answer.status, await answer.text()


async def scrape(files: Files) -> Scrape:
    status, text = await scraped(files.admin_url)
    assert status == 200
    return parsed(text)


async def until(files: Files, name: str, value: float, **labels: str) -> Scrape:
    """Scrape until a sample has this value: a scrape may be two seconds old."""
    async with asyncio.timeout(60):
        while (found := await scrape(files)).of(name, **labels) != value:
            await asyncio.sleep(0.2)
    return found


def opened(files: Files) -> Files:
    """The same, so that whoever asks is answered."""
    admin = yaml.safe_load(files.config.read_text()).get("admin", {})
    change(files, admin=admin | {"metrics": "open"})
    return files


@asynccontextmanager
async def alone(database: str, **more: Any) -> AsyncIterator[str]:
    """Metrics without a worker, whose scrapes are kept for an hour."""
    async with Database.open(database, max_connections=2) as pool:
        measured = Measured(
            database=pool,
            deliveries=DeliveryMetrics(),
            held=lambda: 0,
            may_send=lambda: True,
            transports={},
            limits=Budget(),
            keys_in_synapse=False,
        )
        app = web.Application()
        Metrics(measured, open_to_all=True, **more).add_to(app)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        try:
            yield f"http://{host}:{port}"
        finally:
            await runner.cleanup()


async def test_every_figure_is_there_and_labelled_by_appservice_and_never_by_user(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        ours = [registration("bot", bot.url, users=["@b_.*"])]
        files = opened(write_files(tmp_path, database, ours))
        await capture(pg, BOT, 1)
        async with worker(files):
            await bot.until(lambda: len(bot.to_device) == 1)
            found = await until(files, "attempts_total", 1, appservice="bot", outcome="acked")
    names = {name for name, _ in found}
    for figure in FIGURES:
        name = PREFIX + figure.name + ("_total" if figure.counter else "")
        assert name in names or figure.name in WHERE_NOTHING_IS
    assert found.labels("appservice") == {"bot", ""}
    assert not any("@" in value for _, labels in found for _, value in labels)
    assert "process_resident_memory_bytes" in names


async def test_what_waits_fails_and_is_delivered_is_told(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        bot.answer = lambda _: (503, {}, b"{}")
        ours = [registration("bot", bot.url, users=["@b_.*"])]
        files = opened(write_files(tmp_path, database, ours))
        for n in range(1, 4):
            await capture(pg, BOT, n)
        async with worker(files), homeserver(files) as one:
            await bot.until(lambda: len(bot.requests) > 1)
            assert await one.push("1", b'{"events":[{"event_id":"$1","type":"m"}]}') == 200
            waiting = await until(files, "waiting_items", 4, appservice="bot")
            assert waiting.of("lane_state", appservice="bot", state="failing") == 1
            assert (waiting.of("failed_attempts", appservice="bot") or 0) >= 1
            assert waiting.of("failing_since_timestamp_seconds", appservice="bot")
            assert (waiting.of("oldest_age_seconds", appservice="bot", kind="all") or 0) > 0
            assert (waiting.of("oldest_age_seconds", appservice="bot", kind="to_device") or 0) > 0
            assert (waiting.of("attempts_total", appservice="bot", outcome="http_503") or 0) >= 1
            assert (waiting.of("waiting_bytes", appservice="bot") or 0) > 0
            bot.answer = lambda _: (200, {}, b"{}")
            await until(files, "capture_to_ack_seconds_count", 4, appservice="bot")
            # what this scrape had read of the database may be older than what it counts
            await until(files, "oldest_age_seconds", 0, appservice="bot", kind="all")
            done = await until(files, "oldest_age_seconds", 0, appservice="bot", kind="to_device")
    assert done.of("up") == done.of("workers") == done.of("leases_held") == 1
    assert done.of("oldest_age_seconds", appservice="bot", kind="all") == 0
    assert done.of("oldest_age_seconds", appservice="bot", kind="to_device") == 0
    delivered = {"appservice": "bot", "outcome": "delivered"}
    assert done.of("ledger_items_total", kind="to_device", **delivered) == 3
    assert done.of("ledger_items_total", kind="event", **delivered) == 1
    assert done.of("capture_log_facts") == 0


async def test_what_an_appservice_fetches_and_acknowledges_is_counted(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = opened(files_for(tmp_path, database, "poll"))
    await capture(pg, BOT, 1)
    async with worker(files), polling(files) as bot:
        assert await bot.ack((await bot.next()).txn_id) == 200
        found = await until(files, "capture_to_ack_seconds_count", 1, appservice="bot")
    assert found.of("attempts_total", appservice="bot", outcome="acked") == 1
    assert found.of("capture_to_ack_seconds_bucket", appservice="bot", le="86400.0") == 1


async def test_only_viewers_may_ask_unless_the_config_opens_it(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = with_tokens(write_files(tmp_path, database, [registration("bot", None)]))
    async with worker(files):
        assert (await scraped(files.admin_url))[0] == 401
        assert (await scraped(f"{files.admin_url}", Authorization="Bearer wrong"))[0] == 401
        status, text = await scraped(files.admin_url, Authorization="Bearer secret-viewer")
        assert status == 200
        assert parsed(text).of("up") == 1


async def test_however_many_ask_the_database_is_asked_once(pg: Connection, database: str) -> None:
    async with alone(database, kept_seconds=3600) as url:
        first = await scraped(url)
        await pg.execute(
            "insert into appservice_bridge.ledger values ('bot', 'event', 'delivered', 7)"
        )
        assert set(await asyncio.gather(*(scraped(url) for _ in range(20)))) == {first}
    async with alone(database) as url:
        now = parsed((await scraped(url))[1])
    labels = {"appservice": "bot", "kind": "event", "outcome": "delivered"}
    assert now.of("ledger_items_total", **labels) == 7


async def test_without_a_database_a_scrape_says_so_and_what_the_process_knows(
    pg: Connection, database: str
) -> None:
    name = await pg.fetchval("select current_database()")
    server = await asyncpg.connect(database.replace(f"/{name}", "/postgres"))
    async with alone(database, kept_seconds=0) as url:
        assert parsed((await scraped(url))[1]).of("up") == 1
        await server.execute(f"alter database {name} with allow_connections false")
        await server.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name
        )
        status, text = await scraped(url)
    await server.close()
    found = parsed(text)
    assert (status, found.of("up"), found.of("leases_held")) == (200, 0, 0)
    assert found.of("capture_log_facts") is None


async def test_a_reload_takes_nothing_away_of_what_was_counted(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        ours = registration("bot", bot.url, users=["@b_.*"])
        files = opened(with_tokens(write_files(tmp_path, database, [ours])))
        await capture(pg, BOT, 1)
        async with worker_process(files), operator(files) as admin:
            await until(files, "attempts_total", 1, appservice="bot", outcome="acked")
            register(files, ours | {"rate_limited": True})
            assert await admin.reload() == "reloaded"
            found = await scrape(files)
    assert found.of("attempts_total", appservice="bot", outcome="acked") == 1
