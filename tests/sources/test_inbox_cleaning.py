"""What leaves Synapse's inbox behind the ack, and what stays there."""

import asyncio
import time
from typing import Final
from urllib.parse import urlsplit

import asyncpg
import pytest
from structlog.testing import capture_logs

from appservice_bridge.delivery.purge import Retention, purge_once
from appservice_bridge.domain.owners import Owners
from appservice_bridge.domain.registration import Namespace, Registration
from appservice_bridge.routing.intake import Intake
from appservice_bridge.sources.inbox_cleaner import InboxCleaner
from appservice_bridge.sources.reconciler import reconcile_once
from appservice_bridge.storage import inbox_cleaning
from appservice_bridge.storage.database import Database, DatabaseUnavailableError
from tests.support.delivered import add_device, delivered
from tests.support.facts import Connection, attach, outbox, send
from tests.support.intake import registered

BOT: Final = "@b_1:example.org"
INBOX: Final = "select user_id, stream_id from public.device_inbox order by 1, 2"
NOTED: Final = "select count(*) from appservice_bridge.inbox_delivered"
SLIDING: Final = """
create table public.sliding_sync_connections (
    connection_key bigserial primary key, user_id text not null,
    effective_device_id text not null, conn_id text not null, created_ts bigint not null)
"""


async def left(pg: Connection) -> list[tuple[str, int]]:
    return [tuple(row) for row in await pg.fetch(INBOX)]


async def test_rows_leave_the_inbox_only_behind_the_ack_and_after_the_grace(
    pg: Connection, db: Database, intake: Intake, cleaner: InboxCleaner
) -> None:
    await attach(pg)
    await add_device(pg, BOT)
    for n in (1, 2):
        await send(pg, BOT, n, n=n)
    await intake.consume_once()
    await pg.execute("update appservice_bridge.lane set acked_to = 1")
    await purge_once(db, asyncio.Event(), Retention(cleaned={"bot"}))
    patient = InboxCleaner(db, registered(("bot", "@b_.*")), {"bot"})
    assert await patient.clean_once() == 0
    assert await cleaner.clean_once() == 1
    assert await left(pg) == [(BOT, 2)]
    assert await outbox(pg) == [2]
    assert await pg.fetchval(NOTED) == 0
    counted = "select items from appservice_bridge.ledger where outcome = 'cleaned'"
    assert await pg.fetchval(counted) == 1


async def test_without_the_opt_in_nothing_is_noted_and_who_opted_out_since_is_left_alone(
    pg: Connection, db: Database, intake: Intake
) -> None:
    await attach(pg)
    await add_device(pg, BOT)
    await send(pg, BOT, 1)
    await delivered(pg, db, intake)
    assert await pg.fetchval(NOTED) == 0
    await send(pg, BOT, 2)
    await delivered(pg, db, intake, "bot")
    assert await pg.fetchval(NOTED) == 1
    opted_out = InboxCleaner(db, registered(("bot", "@b_.*")), (), grace_seconds=0)
    assert await opted_out.clean_once() == 0
    assert await left(pg) == [(BOT, 1), (BOT, 2)]
    assert await pg.fetchval(NOTED) == 0


def owning(appservice_id: str, *namespaces: tuple[str, bool]) -> Registration:
    return Registration(
        id=appservice_id,
        url="http://127.0.0.1:9",
        as_token=f"as_{appservice_id}",
        hs_token=f"hs_{appservice_id}",
        sender_localpart=f"{appservice_id}_bot",
        users=tuple(Namespace(regex=regex, exclusive=alone) for regex, alone in namespaces),
        source="test",
    )


@pytest.mark.parametrize(
    "owners",
    [
        pytest.param([owning("bot", ("@b_.*", False))], id="not exclusive"),
        pytest.param(
            [owning("bot", ("@b_.*", True)), owning("log", ("@.*", False))], id="another owns it"
        ),
        pytest.param([owning("log", ("@.*", True))], id="no more its own"),
    ],
)
async def test_the_rows_of_users_who_are_not_one_appservice_s_alone_stay(
    pg: Connection, db: Database, intake: Intake, owners: list[Registration]
) -> None:
    await attach(pg)
    await add_device(pg, BOT)
    await send(pg, BOT, 1)
    await delivered(pg, db, intake, "bot")
    known = Owners(owners, server_name="example.org")
    cleaner = InboxCleaner(db, known, {"bot", "log"}, grace_seconds=0)
    assert await cleaner.clean_once() == 0
    assert await left(pg) == [(BOT, 1)]
    assert await pg.fetchval(NOTED) == 0


async def test_what_is_already_gone_shows_that_the_device_syncs_and_the_rest_of_it_stays_for_good(
    pg: Connection, db: Database, intake: Intake, cleaner: InboxCleaner
) -> None:
    await attach(pg)
    for user in (BOT, "@b_2:example.org"):
        await add_device(pg, user)
        for n in (1, 2, 3):
            await send(pg, user, n)
    await delivered(pg, db, intake, "bot")
    await pg.execute("delete from public.device_inbox where user_id = $1 and stream_id = 1", BOT)
    assert await cleaner.clean_once() == 3
    assert await left(pg) == [(BOT, 2), (BOT, 3)]
    await send(pg, BOT, 4)
    await delivered(pg, db, intake, "bot")
    assert await cleaner.clean_once() == 0
    assert await left(pg) == [(BOT, 2), (BOT, 3), (BOT, 4)]
    assert await pg.fetchval(NOTED) == 0


async def test_a_device_with_sliding_sync_is_seen_before_anything_of_it_is_deleted(
    pg: Connection, db: Database, intake: Intake, cleaner: InboxCleaner
) -> None:
    await attach(pg)
    await pg.execute(SLIDING)
    await pg.execute(
        "insert into public.sliding_sync_connections"
        " (user_id, effective_device_id, conn_id, created_ts) values ($1, 'DEV', 'c', 0)",
        BOT,
    )
    for user in (BOT, "@b_2:example.org"):
        await add_device(pg, user)
        await send(pg, user, 1)
    await delivered(pg, db, intake, "bot")
    assert await cleaner.clean_once() == 1
    assert await left(pg) == [(BOT, 1)]


async def test_a_deleted_device_s_rows_are_the_homeserver_s_and_its_heir_is_another_device(
    pg: Connection, db: Database, intake: Intake, cleaner: InboxCleaner
) -> None:
    await attach(pg)
    await add_device(pg, BOT)
    await send(pg, BOT, 1)
    await delivered(pg, db, intake, "bot")
    await pg.execute("delete from public.device_inbox")
    assert await cleaner.clean_once() == 0  # it syncs
    await send(pg, BOT, 2)
    await pg.execute("delete from public.devices")
    await delivered(pg, db, intake, "bot")
    stop = asyncio.Event()
    running = asyncio.create_task(cleaner.run(stop))
    async with asyncio.timeout(60):
        while await pg.fetchval("select count(*) from appservice_bridge.syncing_device"):
            await asyncio.sleep(0.01)
        while await pg.fetchval(NOTED):
            await asyncio.sleep(0.01)
    stop.set()
    await running
    assert await left(pg) == [(BOT, 2)]
    await pg.execute("delete from public.device_inbox")
    await add_device(pg, BOT)
    await send(pg, BOT, 3)
    await delivered(pg, db, intake, "bot")
    assert await cleaner.clean_once() == 1
    assert await left(pg) == []


async def test_without_the_right_it_says_so_once_and_keeps_nothing_for_later(
    pg: Connection, database: str, db: Database, intake: Intake
) -> None:
    await attach(pg)
    await add_device(pg, BOT)
    name = await pg.fetchval("select current_database()")
    role = f"cleaner_{name}"
    await pg.execute(
        f"create role {role} login password 'p'; grant usage on schema public to {role};"
        f" grant select on all tables in schema public to {role};"
        f" grant usage on schema appservice_bridge to {role};"
        f" grant all on all tables in schema appservice_bridge to {role}"
    )
    try:
        parts = urlsplit(database)
        mine = parts._replace(netloc=f"{role}:p@{parts.hostname}:{parts.port}").geturl()
        async with Database.open(mine) as poor:
            cleaner = InboxCleaner(poor, registered(("bot", "@b_.*")), {"bot"}, grace_seconds=0)
            with capture_logs() as logs:
                for n in (1, 2):
                    await send(pg, BOT, n)
                    await delivered(pg, db, intake, "bot")
                    assert await cleaner.clean_once() == 0
            assert [one["event"] for one in logs] == ["inbox_cleaner.forbidden"]
            assert await pg.fetchval(NOTED) == 0
            await pg.execute(f"grant delete on public.device_inbox to {role}")
            await send(pg, BOT, 3)
            await delivered(pg, db, intake, "bot")
            assert await cleaner.clean_once() == 1
        assert await left(pg) == [(BOT, 1), (BOT, 2)]
    finally:
        await pg.execute(f"drop owned by {role}; drop role {role}")


async def test_a_row_that_the_homeserver_holds_is_waited_for_a_tenth_of_a_second_and_left(
    pg: Connection, database: str, db: Database, intake: Intake, cleaner: InboxCleaner
) -> None:
    await attach(pg)
    await add_device(pg, BOT)
    for n in (1, 2):
        await send(pg, BOT, n)
    await delivered(pg, db, intake, "bot")
    homeserver = await asyncpg.connect(database)
    syncing = homeserver.transaction(isolation="repeatable_read")
    await syncing.start()
    await homeserver.execute("delete from public.device_inbox where stream_id = 2")
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailableError) as held_up:
        await cleaner.clean_once()
    assert held_up.value.reason == "sqlstate 55P03"
    assert time.monotonic() - began < 30
    assert await pg.fetchval(NOTED) == 2  # the whole batch is as it was
    await syncing.commit()
    await homeserver.close()
    assert await cleaner.clean_once() == 0
    assert await left(pg) == [(BOT, 1)]  # for its device syncs


async def test_rows_that_the_homeserver_deletes_between_look_and_delete_cost_its_neighbours_nothing(
    pg: Connection,
    db: Database,
    intake: Intake,
    cleaner: InboxCleaner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await attach(pg)
    await add_device(pg, BOT)
    for n in (1, 2):
        await send(pg, BOT, n)
    await delivered(pg, db, intake, "bot")
    settle = inbox_cleaning.settle

    async def device_syncs_now(*of: object) -> None:
        await pg.execute("delete from public.device_inbox where stream_id = 1")
        await settle(*of)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(inbox_cleaning, "settle", device_syncs_now)
        assert await cleaner.clean_once() == 0
    assert await left(pg) == [(BOT, 2)]
    assert await cleaner.clean_once() == 0
    assert await left(pg) == [(BOT, 2)]


async def test_two_cleaners_do_not_clean_at_once(
    pg: Connection, database: str, db: Database, intake: Intake, cleaner: InboxCleaner
) -> None:
    await attach(pg)
    await add_device(pg, BOT)
    await send(pg, BOT, 1)
    await delivered(pg, db, intake, "bot")
    other = await asyncpg.connect(database)
    async with other.transaction():
        await other.execute("select from appservice_bridge.inbox_cleaner for update")
        assert await cleaner.clean_once() == 0
    await other.close()
    assert await cleaner.clean_once() == 1


async def test_what_was_cleaned_is_not_taken_for_missed(
    pg: Connection, db: Database, intake: Intake, cleaner: InboxCleaner
) -> None:
    await attach(pg)
    await add_device(pg, BOT)
    for n in (1, 2):
        await send(pg, BOT, n, n=n)
    await pg.execute("update public.stream_positions set stream_id = 2")
    await delivered(pg, db, intake, "bot")
    assert await cleaner.clean_once() == 2
    for _ in range(3):
        assert await reconcile_once(db, floor_settle_seconds=0) == 0
    assert await pg.fetchval("select count(*) from appservice_bridge.taken") == 0
    await send(pg, BOT, 3, n=3)
    await intake.consume_once()
    assert await outbox(pg) == [3]
