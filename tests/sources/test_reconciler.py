"""The reconciler finds what was left out, and forgets what can no longer come."""

import pytest

from appservice_bridge.routing.intake import Intake
from appservice_bridge.sources.polling import Polling
from appservice_bridge.sources.reconciler import (
    reconcile_device_streams,
    reconcile_keys,
    recount_keys,
)
from appservice_bridge.storage.database import Database
from tests.support.facts import (
    Connection,
    add_device,
    change_device,
    invalidate,
    sign,
)
from tests.support.polling import attach_triggers, logged, polling_alone

BOT = "@b_1:example.org"
REMOTE = "@remote:elsewhere.org"


@pytest.fixture
async def polling(pg: Connection, db: Database) -> Polling:
    return await polling_alone(pg, db)


async def leave_out(pg: Connection, *tables: str) -> None:
    """As if the triggers had given up behind a lock."""
    for table in tables:
        await pg.execute(f"alter table public.{table} disable trigger user")


async def test_the_reconciler_finds_device_lists_and_signatures_that_were_left_out(
    pg: Connection, db: Database, polling: Polling, intake: Intake
) -> None:
    await attach_triggers(pg)
    await add_device(pg, BOT, "DEV")
    await change_device(pg, BOT, "DEV", 2)
    await sign(pg, BOT, 3, REMOTE)
    assert await reconcile_device_streams(db, server_name="example.org") == 0
    await intake.consume_once()
    assert await reconcile_device_streams(db, server_name="example.org") == 0
    await leave_out(pg, "device_lists_stream", "user_signature_stream")
    await change_device(pg, BOT, "DEV", 4)
    await sign(pg, BOT, 5, REMOTE)
    assert await reconcile_device_streams(db, server_name="example.org") == 2
    assert [(row[0], row[3]) for row in await logged(pg)] == [("device_list", 4), ("signatures", 5)]
    await intake.consume_once()
    assert await reconcile_device_streams(db, server_name="example.org") == 0


async def test_changes_that_were_taken_are_forgotten_only_below_the_floor(
    pg: Connection, db: Database, polling: Polling, intake: Intake
) -> None:
    taken = "select count(*) from appservice_bridge.taken_device_change"
    await change_device(pg, REMOTE, "FAR", 2)
    await pg.execute("update stream_positions set stream_id = 2")
    await polling.poll_once()
    for _ in range(2):  # noted, though it is not routed
        await reconcile_device_streams(db, server_name="example.org", floor_settle_seconds=0)
    await intake.consume_once()
    assert await reconcile_device_streams(db, server_name="example.org") == 0
    assert await pg.fetchval(taken) == 1
    await reconcile_device_streams(db, server_name="example.org", floor_settle_seconds=0)
    assert await pg.fetchval(taken) == 0
    assert await reconcile_device_streams(db, server_name="example.org") == 0


async def test_signs_that_were_looked_at_are_forgotten_only_below_the_floor(
    pg: Connection, db: Database, polling: Polling, intake: Intake
) -> None:
    taken = "select count(*) from appservice_bridge.taken_invalidation"
    await invalidate(pg, 2, BOT, "DEV")
    await polling.poll_once()
    await intake.consume_once()
    await reconcile_keys(db)
    assert await reconcile_keys(db) == 0
    assert await pg.fetchval(taken) == 1
    await reconcile_keys(db, floor_settle_seconds=0)
    assert await pg.fetchval(taken) == 0
    assert await reconcile_keys(db) == 0
    await polling.poll_once()
    assert await logged(pg) == []


async def captured_at(pg: Connection, seconds_ago: float) -> None:
    await pg.execute(
        "insert into appservice_bridge.device_key_state"
        " (appservice_id, user_id, device_id, waiting, recount, captured_at)"
        " values ('bot', $1, 'DEV', false, true, now() - make_interval(secs => $2))"
        " on conflict (appservice_id, user_id, device_id) do update"
        " set captured_at = excluded.captured_at",
        BOT,
        seconds_ago,
    )


async def test_the_reconciler_marks_devices_whose_keys_changed_long_after_their_capture(
    pg: Connection, db: Database, polling: Polling
) -> None:
    await pg.execute("update appservice_bridge.capture_state set mode = 'triggers'")
    await captured_at(pg, 1)
    await invalidate(pg, 2, BOT, "DEV")
    assert await reconcile_keys(db) == 1
    assert await logged(pg) == []  # the trigger told of it
    await captured_at(pg, 60)
    await invalidate(pg, 3, BOT, "DEV")
    for _ in range(2):
        await reconcile_keys(db)
        assert await logged(pg) == [("device_keys", BOT, "DEV", None, b"")]


async def test_the_recount_of_all_marks_what_came_to_another_sum_and_nothing_else(
    pg: Connection, db: Database, polling: Polling, intake: Intake
) -> None:
    key = "insert into public.e2e_one_time_keys_json values ($1, 'DEV', 'curve', $2, 0, '{}')"
    await captured_at(pg, 60)
    await pg.execute(key, BOT, "A")
    assert await recount_keys(db, every_seconds=0) == 1  # nothing is known of it yet
    await intake.consume_once()
    assert await recount_keys(db) == 0  # it is not time
    assert await recount_keys(db, every_seconds=0) == 0
    await pg.execute(key, BOT, "B")
    assert await recount_keys(db, every_seconds=0) == 1
    assert await logged(pg) == [("device_keys", BOT, "DEV", None, b"")]
    await intake.consume_once()
    await pg.execute(
        "insert into public.e2e_fallback_keys_json values ($1, 'DEV', 'curve', 'F', '{}', false)",
        BOT,
    )
    assert await recount_keys(db, every_seconds=0) == 1
    await pg.execute("update public.e2e_fallback_keys_json set used = true")
    assert await recount_keys(db, every_seconds=0) == 1
    await pg.execute("delete from appservice_bridge.device_key_state")
    await recount_keys(db, every_seconds=0)
    assert await pg.fetchval("select count(*) from appservice_bridge.key_summary") == 0
