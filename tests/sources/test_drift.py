"""The drift guard: each thing that triggers and readers need, taken away and given back."""

import asyncio
import itertools
from pathlib import Path
from typing import Final

import pytest
from structlog.testing import capture_logs

from appservice_bridge.domain.capture import TRIGGERS, CaptureMode, Trigger
from appservice_bridge.domain.supported import NEWEST_SCHEMA_VERSION
from appservice_bridge.domain.synapse_tables import COLUMNS
from appservice_bridge.routing.intake import Intake
from appservice_bridge.sources.drift_guard import EVERY_SECONDS, DriftGuard
from appservice_bridge.sources.polling import Polling
from appservice_bridge.sources.reconciler import reconcile_once
from appservice_bridge.storage import synapse
from appservice_bridge.storage.database import Database, SourceUnreadableError
from appservice_bridge.storage.drift import NOT_OURS, functions_of_release
from tests.support.facts import Connection, attach, make_synapse_tables, outbox, send
from tests.support.relaying import one_bot

FUNCTIONS = sorted({trigger.function for trigger in TRIGGERS})

BOT: Final = "@b_1:example.org"
NUMBERS: Final = itertools.count(1)
OWN_FUNCTION: Final = """
create function public.own() returns trigger language plpgsql as 'begin return null; end'
"""


@pytest.fixture
async def polling(pg: Connection, db: Database) -> Polling:
    await attach(pg)
    return Polling(db, server_name="example.org")


@pytest.fixture
async def guard(db: Database, polling: Polling) -> DriftGuard:
    """It has looked once, and all was well."""
    one = DriftGuard(db, polling, wanted=CaptureMode.TRIGGERS)
    state = await one.look()
    assert (state.problems, state.mode) == ((), CaptureMode.TRIGGERS)
    return one


async def require_delivered(pg: Connection, polling: Polling, intake: Intake) -> None:
    """A message that is sent now arrives, once."""
    number = next(NUMBERS)
    await send(pg, BOT, number, n=number)
    await polling.run_once()
    await intake.consume_once()
    assert (await outbox(pg)).count(number) == 1


async def require_green(guard: DriftGuard) -> None:
    """Two looks: the first still polls, for writers that began before the mend."""
    states = [await guard.look(), await guard.look()]
    assert [(state.problems, state.mode) for state in states] == [
        ((), CaptureMode.POLLING),
        ((), CaptureMode.TRIGGERS),
    ]


def faults(trigger: Trigger) -> dict[str, str]:
    """What can be wrong with a trigger, by what does it."""
    drop = f"drop trigger {trigger.name} on public.{trigger.table};"
    others = trigger.create.replace(f"appservice_bridge.{trigger.function}", "public.own")
    for_rows = trigger.create.partition(" referencing")[0] + " for each row"
    return {
        drop: "is not there",
        f"alter table public.{trigger.table} disable trigger {trigger.name}": "is disabled",
        f"alter table public.{trigger.table} enable replica trigger {trigger.name}": NOT_OURS,
        drop + others: NOT_OURS,
        f"{drop}{for_rows} execute function public.own()": NOT_OURS,
    }


@pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda one: f"{one.table} {one.event}")
async def test_a_trigger_that_is_not_sound_is_named_and_polling_takes_over_until_it_is_mended(
    pg: Connection, polling: Polling, guard: DriftGuard, intake: Intake, trigger: Trigger
) -> None:
    for statement, fault in faults(trigger).items():
        await pg.execute(OWN_FUNCTION)
        await pg.execute(statement)
        await require_red(guard, f"trigger {trigger.name} on table {trigger.table} {fault}")
        await require_delivered(pg, polling, intake)
        if fault == NOT_OURS:
            await pg.execute(f"drop trigger {trigger.name} on public.{trigger.table}")
        await pg.execute("drop function public.own()")
        await synapse.install(pg)
        await require_green(guard)
        await require_delivered(pg, polling, intake)


async def require_red(guard: DriftGuard, what: str) -> None:
    with capture_logs() as logs:
        state = await guard.look()
    assert state.mode is CaptureMode.POLLING
    assert [problem.partition(": ")[0] for problem in state.problems] == [what]
    found = [line for line in logs if line["event"] == "drift.found"]
    assert [(line["log_level"], line["what"]) for line in found] == [("error", what)]
    assert all(line["mend"] for line in found)
    taking_over = [line for line in logs if line["event"] == "capture.mode"]
    assert [(line["log_level"], line["mode"]) for line in taking_over] == [("error", "polling")]
    with capture_logs() as logs:
        await guard.look()
    assert logs == []  # told once


FUNCTION_FAULTS: Final = {
    "another body": "create or replace function appservice_bridge.{name}() returns trigger"
    " language plpgsql security definer set search_path = pg_catalog, pg_temp"
    " set lock_timeout = '100ms' as 'begin return null; end'",
    "no lock_timeout": "alter function appservice_bridge.{name}() reset lock_timeout",
    "no rights": "alter function appservice_bridge.{name}() security invoker",
}


@pytest.mark.parametrize("fault", FUNCTION_FAULTS)
async def test_a_function_that_is_not_this_release_s_is_named_and_polling_takes_over(
    pg: Connection, polling: Polling, guard: DriftGuard, intake: Intake, fault: str
) -> None:
    for name in FUNCTIONS:
        await pg.execute(FUNCTION_FAULTS[fault].format(name=name))
        await require_red(guard, f"function {name} is not this release's")
        await require_delivered(pg, polling, intake)
        await synapse.install(pg)
        await require_green(guard)


async def test_a_function_of_a_role_that_may_not_write_the_log_is_named(
    pg: Connection, guard: DriftGuard
) -> None:
    name = await pg.fetchval("select current_database()")
    await pg.execute(f"create role lesser_{name} superuser")
    await pg.execute(
        f"alter function appservice_bridge.capture_device_inbox() owner to lesser_{name};"
        f"alter role lesser_{name} nosuperuser"
    )
    what = "function capture_device_inbox belongs to a role that may not write the log"
    await require_red(guard, what)
    await pg.execute(
        "alter function appservice_bridge.capture_device_inbox() owner to current_user;"
        f"drop role lesser_{name}"
    )
    await require_green(guard)


def test_every_function_of_the_capture_is_compared() -> None:
    assert set(functions_of_release()) >= {*FUNCTIONS, "wake_intake"}
    for name in FUNCTIONS:
        function = functions_of_release()[name]
        assert function.definer
        assert "lock_timeout=100ms" in function.settings
        assert function.source.strip().startswith("begin")


async def test_a_column_that_went_is_named_its_table_left_out_and_the_rest_is_read(
    pg: Connection, polling: Polling, guard: DriftGuard, intake: Intake
) -> None:
    for table, column in [(table, column) for table, some in COLUMNS.items() for column in some]:
        await pg.execute(f"alter table public.{table} rename {column} to another")
        await require_red(guard, f"column {column} of table {table} is not there")
        assert (await guard.look()).unreadable == {table}
        if table not in ("device_inbox", "stream_positions"):
            await require_delivered(pg, polling, intake)
        await pg.execute(f"alter table public.{table} rename another to {column}")
        await require_green(guard)
    await require_delivered(pg, polling, intake)


async def test_a_table_that_went_is_named(
    pg: Connection, polling: Polling, guard: DriftGuard
) -> None:
    for table in COLUMNS:
        await pg.execute(f"alter table public.{table} rename to another")
        state = await guard.look()
        assert f"table {table} is not there" in [p.partition(": ")[0] for p in state.problems]
        assert state.mode is CaptureMode.POLLING
        assert state.unreadable == {table}
        await polling.run_once()
        await pg.execute(f"alter table public.another rename to {table}")
        await require_green(guard)


async def test_a_column_of_another_type_is_named(pg: Connection, guard: DriftGuard) -> None:
    await pg.execute("alter table public.device_inbox alter stream_id type numeric")
    await require_red(guard, "column stream_id of table device_inbox is numeric, not bigint")


async def test_messages_that_could_not_be_read_are_read_when_the_table_is_as_it_was(
    pg: Connection, polling: Polling, guard: DriftGuard, intake: Intake
) -> None:
    await pg.execute("alter table public.device_inbox rename message_json to another")
    await guard.look()
    await pg.execute(
        "insert into public.device_inbox (user_id, device_id, stream_id, another)"
        """ values ($1, 'DEV', 77, '{"content": {"n": 77}, "sender": "@a:b", "type": "m"}')""",
        BOT,
    )
    await polling.run_once()
    await pg.execute("alter table public.device_inbox rename another to message_json")
    await guard.look()
    await polling.run_once()
    await intake.consume_once()
    assert await outbox(pg) == [77]


async def test_a_right_to_read_that_went_is_named_with_the_grant(
    pg: Connection, database: str, polling: Polling
) -> None:
    """The bridge's role as it should be: it may read, and owns nothing of Synapse's."""
    role = f"reader_{await pg.fetchval('select current_database()')}"
    await pg.execute(
        f"create role {role} login password 'secret';"
        f"grant usage on schema appservice_bridge to {role};"
        f"grant all on all tables in schema appservice_bridge to {role};"
        f"grant all on all sequences in schema appservice_bridge to {role};"
        f"grant select on all tables in schema public to {role};"
        f"revoke select on public.device_lists_stream from {role}"
    )
    mine = f"postgresql://{role}:secret@{database.rpartition('@')[2]}"
    async with Database.open(mine) as db:
        own = Polling(db, server_name="example.org")
        guard = DriftGuard(db, own, wanted=CaptureMode.POLLING)
        state = await guard.look()
        assert state.unreadable == {"device_lists_stream"}
        [problem] = state.problems
        assert "right to read public.device_lists_stream is gone" in problem
        assert f"run GRANT SELECT ON TABLE public.device_lists_stream TO {role};" in problem
        await own.run_once()
        await pg.execute(f"grant select on public.device_lists_stream to {role}")
        assert (await guard.look()).problems == ()
    await pg.execute(f"drop owned by {role}; drop role {role}")


async def test_a_synapse_that_was_not_tested_is_warned_of_and_captured_from(
    pg: Connection, guard: DriftGuard
) -> None:
    await pg.execute("update public.schema_version set version = 1000")
    with capture_logs() as logs:
        state = await guard.look()
        await guard.look()
    assert [(line["log_level"], line["event"]) for line in logs] == [
        ("warning", "drift.untested_synapse")
    ]
    assert state.mode is CaptureMode.TRIGGERS
    await pg.execute("update public.schema_version set version = $1", NEWEST_SCHEMA_VERSION)
    with capture_logs() as logs:
        await guard.look()
    assert logs == []


async def test_a_table_that_changes_between_two_looks_ends_no_worker(
    pg: Connection, db: Database, polling: Polling, guard: DriftGuard
) -> None:
    await pg.execute("drop trigger appservice_bridge_insert on public.device_inbox")
    await guard.look()
    await pg.execute("alter table public.device_inbox rename message_json to another")
    with capture_logs() as logs:
        await polling.run_once()
    assert [line["event"] for line in logs] == ["polling.left_out"]
    with pytest.raises(SourceUnreadableError):  # the relay then stores without
        async with db.transaction() as conn:
            await polling.catch_up(conn)
    with pytest.raises(SourceUnreadableError):
        await reconcile_once(db)


async def test_events_are_stored_when_the_keys_before_them_cannot_be_read(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    await make_synapse_tables(pg)
    async with one_bot(tmp_path, database, capture="polling") as (bot, homeserver):
        await pg.execute("alter table public.device_inbox rename message_json to another")
        assert await homeserver.push("1", b'{"events":[{"event_id":"$1"}]}') == 200
        await bot.until(lambda: [event["event_id"] for event in bot.events] == ["$1"])


async def test_polling_that_is_asked_for_looks_for_no_trigger_and_goes_on(
    pg: Connection, db: Database, polling: Polling
) -> None:
    await pg.execute("drop function appservice_bridge.capture_device_inbox() cascade")
    guard = DriftGuard(db, polling, wanted=CaptureMode.POLLING)
    for _ in range(3):
        state = await guard.look()
        assert (state.mode, state.problems) == (CaptureMode.POLLING, ())


async def test_another_worker_polls_too_once_one_has_found_that_it_is_due(
    pg: Connection, db: Database, guard: DriftGuard, intake: Intake
) -> None:
    await pg.execute("drop trigger appservice_bridge_insert on public.device_inbox")
    other, stop = Polling(db, server_name="example.org"), asyncio.Event()
    running = asyncio.create_task(other.run(stop, every_seconds=0.05))
    await guard.look()
    await send(pg, BOT, 900, n=900)
    async with asyncio.timeout(60):
        while not await pg.fetchval("select count(*) from appservice_bridge.capture_log"):
            await asyncio.sleep(0.02)
    stop.set()
    await running


async def test_the_guard_looks_again_within_a_minute(
    pg: Connection, polling: Polling, guard: DriftGuard
) -> None:
    assert EVERY_SECONDS < 60
    stop = asyncio.Event()
    running = asyncio.create_task(guard.run(stop, every_seconds=0.05))
    await pg.execute("drop trigger appservice_bridge_insert on public.device_inbox")
    state = "select mode from appservice_bridge.capture_state"
    async with asyncio.timeout(60):
        while await pg.fetchval(state) != "polling":
            await asyncio.sleep(0.02)
    stop.set()
    await running
