"""What the triggers write when the budget is used up, or when the bridge is long silent."""

import time
from typing import Final

import asyncpg
import pytest
from structlog.testing import capture_logs

from appservice_bridge.domain.budget import Budget
from appservice_bridge.domain.to_device import to_device_item
from appservice_bridge.routing.intake import Intake
from appservice_bridge.sources import watchkeeper
from appservice_bridge.sources.reconciler import reconcile_once
from appservice_bridge.sources.watchkeeper import Watchkeeper
from appservice_bridge.storage import recomputing
from appservice_bridge.storage.database import Database, DatabaseUnavailableError
from tests.support.facts import Connection, attach, message, outbox, send

BOT: Final = "@b_1:example.org"
KEYS: Final = "public.e2e_one_time_keys_json"
BODIES: Final = (
    "select body from appservice_bridge.capture_log where kind = 'to_device' order by seq"
)
SIZE: Final = "select pg_total_relation_size('appservice_bridge.capture_log')"
TOLD: Final = "select keys_only, recompute from appservice_bridge.capture_watch"


async def silent(pg: Connection, interval: str) -> None:
    await pg.execute(
        "update appservice_bridge.capture_watch set beat_at = now() - $1::text::interval", interval
    )


async def bodies(pg: Connection) -> list[bytes]:
    return [row["body"] for row in await pg.fetch(BODIES)]


def keeper(db: Database, total_bytes: int = 10**12) -> Watchkeeper:
    return Watchkeeper(db, Budget(total_bytes=total_bytes), reads_synapse=True)


async def test_with_no_worker_the_log_stops_growing_in_payload_and_all_is_delivered_later(
    pg: Connection, db: Database, intake: Intake
) -> None:
    await attach(pg)
    await silent(pg, "1 hour")
    limit = await pg.fetchval(SIZE) + 200_000
    await pg.execute("update appservice_bridge.capture_watch set log_limit_bytes = $1", limit)
    padding = "ü" + "x" * 10_000
    for n in range(1, 101):
        await send(pg, BOT, n, n=n, padding=padding)
    captured = await bodies(pg)
    full = [body for body in captured if body]
    assert len(captured) == 100
    assert 5 < len(full) < 20
    assert captured[len(full) :] == [b""] * (100 - len(full))
    assert await pg.fetchval(SIZE) < limit + 100_000

    while not (await intake.consume_once()).done:
        pass
    assert await outbox(pg) == list(range(1, 101))
    rows = await pg.fetch("select payload from appservice_bridge.outbox order by position")
    assert [row["payload"] for row in rows] == [
        to_device_item(BOT, "DEV", message(n=n, padding=padding).encode()) for n in range(1, 101)
    ]


async def test_a_worker_that_looks_decides_not_the_size_of_the_log(pg: Connection) -> None:
    await attach(pg)
    await pg.execute(
        "update appservice_bridge.capture_watch set log_limit_bytes = 0, beat_at = now()"
    )
    await send(pg, BOT, 1)
    await pg.execute("update appservice_bridge.capture_watch set keys_only = true")
    await send(pg, BOT, 2)
    assert await bodies(pg) == [message().encode(), b""]


async def test_seven_days_without_a_beat_and_nothing_at_all_is_written(pg: Connection) -> None:
    async def everything(device: str, stream_id: int) -> int:
        for statement in (
            f"insert into public.device_inbox values ('{BOT}', '{device}', 1, '{{}}')",
            f"insert into public.device_lists_stream values ({stream_id}, '{BOT}', '{device}')",
            f"insert into public.user_signature_stream values ({stream_id}, '{BOT}', '[]')",
            f"insert into {KEYS} values ('{BOT}', '{device}', 'a', 'k', 1, '{{}}')",
            f"delete from {KEYS} where device_id = '{device}'",
            f"insert into public.devices (user_id, device_id) values ('{BOT}', '{device}')",
            f"delete from public.devices where device_id = '{device}'",
        ):
            await pg.execute(statement)
        kinds = await pg.fetch("select distinct kind from appservice_bridge.capture_log")
        return len(kinds)

    await attach(pg)
    await silent(pg, "8 days")
    assert await everything("ONE", 1) == 0
    await silent(pg, "6 days 23 hours")
    assert await everything("TWO", 2) == 5


async def test_a_silence_is_made_up_for_and_what_waited_comes_first(
    pg: Connection, db: Database, intake: Intake
) -> None:
    await attach(pg)
    await pg.execute("insert into appservice_bridge.foreign_user values ('@carol:example.org')")
    for user in (BOT, "@carol:example.org"):
        await pg.execute("insert into public.devices (user_id, device_id) values ($1, 'D')", user)
    await pg.execute("insert into appservice_bridge.tracked values ('bot', '@friend:elsewhere')")
    await silent(pg, "8 days")
    for n in range(1, 6):
        await send(pg, BOT, n, n=n)
    assert await bodies(pg) == []

    await keeper(db).look_once()
    await send(pg, BOT, 6, n=6)
    while not (await intake.consume_once()).done:
        pass
    assert await outbox(pg) == [1, 2, 3, 4, 5, 6]
    told = await pg.fetch("select user_id from appservice_bridge.device_list_update order by 1")
    assert [row["user_id"] for row in told] == [BOT, "@friend:elsewhere"]
    counted = await pg.fetch("select user_id, device_id from appservice_bridge.device_key_state")
    assert [tuple(row) for row in counted] == [(BOT, "D")]
    assert tuple(await pg.fetchrow(TOLD) or ()) == (False, False)

    await keeper(db).look_once()
    assert await pg.fetchval("select count(*) from appservice_bridge.capture_log") == 0


@pytest.mark.parametrize("step", ["append_devices", "append_users"])
async def test_a_recomputation_that_was_cut_off_is_done_at_the_next_look(
    pg: Connection, db: Database, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    await attach(pg)
    await pg.execute(f"insert into public.devices (user_id, device_id) values ('{BOT}', 'D')")
    await silent(pg, "8 days")
    done = getattr(recomputing, step)

    async def cut_before(conn: Connection) -> None:
        pid = await conn.fetchval("select pg_backend_pid()")
        await pg.execute("select pg_terminate_backend($1)", pid)
        await done(conn)

    with monkeypatch.context() as patched:
        patched.setattr(recomputing, step, cut_before)
        with pytest.raises(DatabaseUnavailableError):
            await keeper(db).look_once()
    assert tuple(await pg.fetchrow(TOLD) or ()) == (False, True)
    assert await pg.fetchval("select count(*) from appservice_bridge.capture_log") == 0
    await keeper(db).look_once()
    kinds = await pg.fetch("select kind from appservice_bridge.capture_log order by seq")
    assert [row["kind"] for row in kinds] == ["device_keys", "device_list"]
    assert tuple(await pg.fetchrow(TOLD) or ()) == (False, False)


async def test_without_its_row_the_watch_lets_payloads_be_captured(
    pg: Connection, db: Database
) -> None:
    await attach(pg)
    await pg.execute("delete from appservice_bridge.capture_watch")
    await send(pg, BOT, 1)
    assert await bodies(pg) == [message().encode()]
    await keeper(db).look_once()
    assert tuple(await pg.fetchrow(TOLD) or ()) == (False, False)


@pytest.mark.parametrize(
    "breaking",
    [
        "alter table appservice_bridge.capture_watch rename to gone",
        "alter table appservice_bridge.capture_watch drop column keys_only",
        "alter table appservice_bridge.capture_watch alter beat_at type text",
    ],
)
async def test_a_fault_in_the_watch_fails_no_insert_of_the_homeserver(
    pg: Connection, breaking: str
) -> None:
    await attach(pg)
    await send(pg, BOT, 1)
    await pg.execute(breaking)
    await send(pg, BOT, 2)
    await pg.execute(f"insert into public.device_lists_stream values (1, '{BOT}', 'D')")
    await pg.execute(f"insert into public.user_signature_stream values (1, '{BOT}', '[]')")
    assert await pg.fetchval("select count(*) from public.device_inbox") == 2
    assert len(await bodies(pg)) == 1


async def test_a_locked_watch_holds_the_homeserver_up_for_a_tenth_of_a_second_at_most(
    pg: Connection, database: str, db: Database, intake: Intake
) -> None:
    await attach(pg)
    other = await asyncpg.connect(database)
    async with other.transaction():
        await other.execute("lock table appservice_bridge.capture_watch in access exclusive mode")
        began = time.monotonic()
        await send(pg, BOT, 1, n=1)
        assert time.monotonic() - began < 30
    await other.close()
    assert await pg.fetchval("select count(*) from public.device_inbox") == 1
    assert await reconcile_once(db) == 1
    await intake.consume_once()
    assert await outbox(pg) == [1]


async def test_a_used_up_budget_leaves_keys_until_a_tenth_is_free_and_alerts_once_a_crossing(
    pg: Connection, db: Database, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchkeeper, "RECLAIM_SECONDS", 0.0)
    await attach(pg)
    await pg.execute("set search_path = public")
    used = await pg.fetchval(
        "select sum(pg_total_relation_size(oid))::bigint from pg_class"
        " where relnamespace = 'appservice_bridge'::regnamespace and relkind = 'r'"
    )
    watch = keeper(db, total_bytes=used + 1_000_000)
    padding = "x" * 50_000
    with capture_logs() as logs:
        for n in range(1, 41):
            await send(pg, BOT, n, n=n, padding=padding)
            await watch.look_once()
    assert [entry["percent"] for entry in logs if entry["event"] == "budget.alert"] == [50, 80, 100]
    captured = await bodies(pg)
    assert 10 < len([body for body in captured if body]) < 30
    assert captured[-1] == b""
    assert (await pg.fetchrow(TOLD) or [None])[0] is True
    await pg.execute("delete from appservice_bridge.capture_log")  # and its bytes lie there still
    with capture_logs() as logs:
        await watch.look_once()
        await watch.look_once()
    assert "budget.has_room" in [entry["event"] for entry in logs]
    await send(pg, BOT, 41, n=41)
    assert await bodies(pg) == [message(n=41).encode()]
    assert await reconcile_once(db) == 40
