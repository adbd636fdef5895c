"""Each table of Synapse's taken away: every loop that reads it goes on, and so does a worker."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from appservice_bridge.domain.budget import Budget
from appservice_bridge.domain.capture import CAPTURED, READ
from appservice_bridge.routing.intake import Intake
from appservice_bridge.sources.event_recovery import EventRecovery
from appservice_bridge.sources.forgotten_events import ForgottenEvents
from appservice_bridge.sources.inbox_cleaner import InboxCleaner
from appservice_bridge.sources.membership_follower import run_membership_follower
from appservice_bridge.sources.reconciler import run_reconciler
from appservice_bridge.sources.watchkeeper import Watchkeeper
from appservice_bridge.storage.database import Database
from tests.support.appservice import appservice
from tests.support.bridge import registration, worker, write_files
from tests.support.facts import Connection, attach, relay, send
from tests.support.intake import registered

TABLES: Final = sorted({*READ, *CAPTURED})
BOT: Final = "@b_1:example.org"
Loop = Callable[[asyncio.Event], Awaitable[None]]


@asynccontextmanager
async def without(pg: Connection, table: str) -> AsyncIterator[None]:
    await pg.execute(f"alter table public.{table} rename to gone")
    try:
        yield
    finally:
        await pg.execute(f"alter table public.gone rename to {table}")


async def goes_on(loop: Loop) -> None:
    """Run a loop for one round; it must end when it is told to, and not before."""
    stop = asyncio.Event()
    running = asyncio.ensure_future(loop(stop))
    done, _ = await asyncio.wait([running], timeout=0.3)
    stop.set()
    assert not done or running.exception() is None
    await asyncio.wait_for(running, 60)


@pytest.mark.parametrize("table", TABLES)
async def test_every_loop_goes_on_without_a_table_that_it_reads(
    pg: Connection, db: Database, intake: Intake, table: str
) -> None:
    await attach(pg)
    await pg.execute("reset search_path")
    owners = registered(("bot", "@b_.*"))
    async with aiohttp.ClientSession() as session:
        recovery = EventRecovery(db, owners, session, "http://127.0.0.1:9")
        forgotten = ForgottenEvents(db, owners, recovery)
        keeper = Watchkeeper(db, Budget(), reads_synapse=True)

        async def follow(stop: asyncio.Event) -> None:
            await run_membership_follower(
                db, owners, stop, wake=asyncio.Event(), on_told=lambda _: None
            )

        async def reconcile(stop: asyncio.Event) -> None:
            await run_reconciler(db, stop, server_name="example.org")

        async def clean(stop: asyncio.Event) -> None:
            await InboxCleaner(db, owners, {"bot"}, grace_seconds=0).run(stop)

        await send(pg, BOT, 1)
        await pg.execute("update appservice_bridge.capture_log set body = ''")
        await pg.execute(
            "insert into appservice_bridge.inbox_delivered (appservice_id, user_id, device_id,"
            " stream_id) values ('bot', $1, 'DEV', 1)",
            BOT,
        )
        await pg.execute(
            "update appservice_bridge.capture_watch set beat_at = now() - interval '8 days'"
        )
        loops: tuple[Loop, ...] = (keeper.run, follow, reconcile, clean, forgotten.run, intake.run)
        async with without(pg, table):
            for loop in loops:
                await goes_on(loop)


async def test_a_worker_outlives_the_loss_of_any_table_that_it_reads(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    await attach(pg)
    await pg.execute("reset search_path")
    async with appservice() as bot:
        files = write_files(
            tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])], capture="triggers"
        )
        async with worker(files):
            for number, table in enumerate(TABLES):
                async with without(pg, table):
                    await relay(pg, "bot", f"${number}")
                    await pg.execute("notify appservice_bridge_capture")
                    await bot.until(lambda: len(bot.events) > number)  # noqa: B023
                    await asyncio.sleep(1.2)  # longer than the shortest of all polls
            await relay(pg, "bot", "$last")
            await bot.until(lambda: bot.events[-1]["event_id"] == "$last")


@pytest.mark.parametrize(
    "table", ["stream_positions", "current_state_delta_stream", "device_inbox"]
)
async def test_a_worker_starts_without_a_table_that_it_reads(
    pg: Connection, database: str, tmp_path: Path, table: str
) -> None:
    await attach(pg)
    await pg.execute("reset search_path")
    async with appservice() as bot, without(pg, table):
        files = write_files(
            tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])], capture="triggers"
        )
        async with worker(files):
            await relay(pg, "bot", "$1")
            await bot.until(lambda: len(bot.events) == 1)
