"""The capture in Synapse's own tables: in its DB transaction, and never in its way."""

import asyncio
import time
from pathlib import Path

import asyncpg
import pytest

from appservice_bridge.dev.postgres import EmbeddedPostgres
from appservice_bridge.routing.intake import Intake
from appservice_bridge.sources.reconciler import reconcile_once
from appservice_bridge.storage import inbox, synapse
from appservice_bridge.storage.database import Database
from appservice_bridge.storage.migrations import migrate
from tests.support.facts import Connection, attach, make_synapse_tables, outbox, send

LOG = "select count(*) from appservice_bridge.capture_log"


async def test_a_message_is_captured_in_the_homeservers_own_commit(pg: Connection) -> None:
    await attach(pg)
    with pytest.raises(ZeroDivisionError):
        async with pg.transaction():
            await send(pg, "@b_1:example.org", 1)
            assert await pg.fetchval(LOG) == 1
            raise ZeroDivisionError
    assert await pg.fetchval(LOG) == 0
    await send(pg, "@b_1:example.org", 2)
    assert await pg.fetchval(LOG) == 1


async def test_only_users_known_to_be_foreign_are_left_out(pg: Connection) -> None:
    await attach(pg)
    await pg.execute("insert into appservice_bridge.foreign_user values ('@carol:example.org')")
    await send(pg, "@carol:example.org", 1)
    await send(pg, "@unknown:example.org", 2)
    rows = await pg.fetch("select user_id from appservice_bridge.capture_log")
    assert [row["user_id"] for row in rows] == ["@unknown:example.org"]


async def test_a_locked_log_holds_the_homeserver_up_for_a_tenth_of_a_second_at_most(
    pg: Connection, database: str, db: Database, intake: Intake
) -> None:
    await attach(pg)
    other = await asyncpg.connect(database)
    async with other.transaction():
        await other.execute("lock table appservice_bridge.capture_log in access exclusive mode")
        began = time.monotonic()
        await send(pg, "@b_1:example.org", 1, n=1)
        assert time.monotonic() - began < 30
    await other.close()
    assert await pg.fetchval("select count(*) from public.device_inbox") == 1
    assert await pg.fetchval(LOG) == 0  # left out, and the homeserver's insert stands
    assert await reconcile_once(db) == 1
    await intake.consume_once()
    assert await outbox(pg) == [1]


async def test_the_reconciler_appends_nothing_that_was_captured_or_routed(
    pg: Connection, db: Database, intake: Intake
) -> None:
    await attach(pg)
    await send(pg, "@b_1:example.org", 1, n=1)
    assert await reconcile_once(db) == 0
    await intake.consume_once()
    assert await reconcile_once(db) == 0
    assert await outbox(pg) == [1]


async def test_attaching_starts_at_the_present(
    pg: Connection, db: Database, intake: Intake
) -> None:
    await make_synapse_tables(pg)
    await send(pg, "@b_1:example.org", 5, n=5)
    await pg.execute("set search_path = appservice_bridge, public")
    await synapse.install(pg)
    assert await reconcile_once(db) == 0
    await send(pg, "@b_1:example.org", 6, n=6)
    await intake.consume_once()
    assert await outbox(pg) == [6]


async def test_a_trigger_that_was_lost_is_made_up_for_when_it_is_installed_again(
    pg: Connection, db: Database, intake: Intake
) -> None:
    await attach(pg)
    await pg.execute("drop trigger appservice_bridge_insert on public.device_inbox")
    await send(pg, "@b_1:example.org", 1, n=1)
    await synapse.install(pg)
    assert await reconcile_once(db) == 0  # installing did it
    await intake.consume_once()
    assert await outbox(pg) == [1]


async def test_what_was_taken_is_forgotten_only_below_a_floor_nobody_reads_under(
    pg: Connection, db: Database, intake: Intake
) -> None:
    await attach(pg)
    taken = "select count(*) from appservice_bridge.taken"
    await send(pg, "@b_1:example.org", 1, n=1)
    await pg.execute("update public.stream_positions set stream_id = 1")
    await reconcile_once(db, floor_settle_seconds=0)  # notes 1, though its capture is not routed
    await reconcile_once(db, floor_settle_seconds=0)
    floor = "select settled from appservice_bridge.stream_floor where stream = 'to_device'"
    assert await pg.fetchval(floor) == 0
    await intake.consume_once()
    assert await pg.fetchval(taken) == 1
    await reconcile_once(db, floor_settle_seconds=0)
    assert (await pg.fetchval(floor), await pg.fetchval(taken)) == (1, 0)
    assert await reconcile_once(db, floor_settle_seconds=0) == 0
    await intake.consume_once()
    assert await outbox(pg) == [1]


async def test_installing_beside_writers_fails_no_insert(pg: Connection, database: str) -> None:
    await make_synapse_tables(pg)
    slowest = 0.0

    async def write(first: int, stop: asyncio.Event) -> int:
        nonlocal slowest
        conn = await asyncpg.connect(database)
        n = first
        while not stop.is_set():
            began = time.monotonic()
            async with conn.transaction(isolation="repeatable_read"):
                await send(conn, "@b_1:example.org", n, n=n)
                await asyncio.sleep(0.002)
            slowest = max(slowest, time.monotonic() - began)
            n += 1
        await conn.close()
        return n - first

    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        writers = [group.create_task(write(1_000_000 * w, stop)) for w in range(4)]
        await asyncio.sleep(0.2)
        installer = await asyncpg.connect(
            database, server_settings={"search_path": "appservice_bridge, public"}
        )
        await synapse.install(installer)
        await asyncio.sleep(0.2)
        await synapse.uninstall(installer, discard_backlog=True, everything=False)
        await installer.close()
        await asyncio.sleep(0.2)
        stop.set()
    written = sum(writer.result() for writer in writers)
    assert await pg.fetchval("select count(*) from public.device_inbox") == written
    assert slowest < 30


async def test_uninstalling_is_refused_while_facts_wait(pg: Connection) -> None:
    await attach(pg)
    await send(pg, "@b_1:example.org", 1)
    with pytest.raises(synapse.FactsWaitError) as refused:
        await synapse.uninstall(pg, discard_backlog=False, everything=False)
    assert refused.value.waiting == 1
    assert await synapse.is_installed(pg)
    await synapse.uninstall(pg, discard_backlog=True, everything=True)
    assert not await synapse.is_installed(pg)
    assert await pg.fetchval("select to_regnamespace('appservice_bridge')") is None


async def test_the_floor_stays_while_another_worker_compares(
    pg: Connection, db: Database, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    await attach(pg)
    await send(pg, "@b_1:example.org", 1, n=1)
    await pg.execute("update public.stream_positions set stream_id = 1")
    await reconcile_once(db, floor_settle_seconds=0)  # notes 1
    await intake.consume_once()

    async def held_elsewhere(*_: object, **__: object) -> None:
        return None

    with monkeypatch.context() as patched:
        patched.setattr(inbox, "append_missed", held_elsewhere)
        await reconcile_once(db, floor_settle_seconds=0)
    floor = "select settled from appservice_bridge.stream_floor where stream = 'to_device'"
    assert await pg.fetchval(floor) == 0
    await reconcile_once(db, floor_settle_seconds=0)
    assert await pg.fetchval(floor) == 1


async def test_a_full_queue_of_notifications_fails_no_commit_of_the_homeserver(
    tmp_path: Path,
) -> None:
    settings = {"max_notify_queue_pages": "64"}
    with EmbeddedPostgres(tmp_path / "postgres", settings=settings) as server:
        homeserver, idle = [await asyncpg.connect(server.dsn()) for _ in range(2)]
        await migrate(homeserver)
        await attach(homeserver)
        await idle.execute("listen anything")
        await idle.execute("begin; select 1")  # so that the queue cannot be cut
        with pytest.raises(asyncpg.PostgresError) as full:
            for _ in range(1000):
                await homeserver.execute("select pg_notify('anything', repeat('x', 7000))")
        assert full.value.sqlstate == "54000"
        for n in range(300):
            await send(homeserver, "@b_1:example.org", n)
        assert await homeserver.fetchval(LOG) == 300
        for conn in (homeserver, idle):
            await conn.close()
