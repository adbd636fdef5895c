"""Postgres dies under intake: nobody waits for a pass to be durable, and nothing is lost by it."""

import os
import signal
from pathlib import Path

import asyncpg

from appservice_bridge.dev.postgres import EmbeddedPostgres
from appservice_bridge.routing.announcing import announce, go_live
from appservice_bridge.routing.intake import Intake
from appservice_bridge.storage.database import Database
from appservice_bridge.storage.migrations import migrate
from tests.support.facts import capture, outbox
from tests.support.intake import nobody, registered

LATE = {"wal_writer_delay": "10s"}  # so what no commit waited for is lost for certain
LOGGED = "select count(*) from appservice_bridge.capture_log"


async def test_a_pass_that_a_crash_undid_left_its_facts_in_the_log_and_is_done_again(
    tmp_path: Path,
) -> None:
    with EmbeddedPostgres(tmp_path / "postgres", settings=LATE) as server:
        pg = await asyncpg.connect(server.dsn())
        await migrate(pg)
        async with Database.open(server.dsn()) as db:
            intake = await live_intake(db)
            for n in (1, 2, 3):
                await capture(pg, "@b_1:example.org", n)
            assert (await intake.consume_once()).rows == 3
            assert (await outbox(pg), await pg.fetchval(LOGGED)) == ([1, 2, 3], 0)
            os.kill(server.child.pid, signal.SIGKILL)
        pg.terminate()
        server.start()
        pg = await asyncpg.connect(server.dsn())
        assert (await outbox(pg), await pg.fetchval(LOGGED)) == ([], 3)
        async with Database.open(server.dsn()) as db:
            assert (await (await live_intake(db)).consume_once()).rows == 3
            assert (await outbox(pg), await pg.fetchval(LOGGED)) == ([1, 2, 3], 0)
        await pg.close()


async def live_intake(db: Database) -> Intake:
    owners = registered(("bot", "@b_.*"))
    await go_live(db, await announce(db, owners, epoch="test"))
    return Intake(db, owners, nobody)
