"""Messages of which only the key waits: read at the seal, frozen as any other, or buried."""

import asyncio
from pathlib import Path
from typing import Final

import asyncpg
import pytest

from appservice_bridge.delivery import purge
from appservice_bridge.delivery.key_only import GONE
from appservice_bridge.domain.budget import Budget
from appservice_bridge.domain.transaction import Kind
from appservice_bridge.routing.announcing import announce, go_live
from appservice_bridge.routing.intake import Intake
from appservice_bridge.storage import sealed
from appservice_bridge.storage.database import Database
from tests.support.appservice import Appservice, appservice
from tests.support.bridge import Files, registration, worker, worker_process, write_files
from tests.support.facts import Connection, attach, send
from tests.support.intake import nobody, registered

BOT: Final = "@b_1:example.org"
NO_ROOM: Final = Budget(appservice_bytes=0)
KEYS: Final = "select count(*) from appservice_bridge.outbox where payload = '' and kind = $1"
WAITING: Final = """
select h.bytes_in - l.bytes_out from appservice_bridge.outbox_head h
  join appservice_bridge.lane l using (appservice_id)
"""


async def wait_as_keys(pg: Connection, db: Database, messages: int, padding: str = "") -> None:
    """Messages that were captured while there was no room for their payloads."""
    await attach(pg)
    owners = registered(("bot", "@b_.*"))
    await go_live(db, await announce(db, owners, epoch="test"))
    for n in range(1, messages + 1):
        await send(pg, BOT, n, n=n, padding=padding)
    await Intake(db, owners, nobody, NO_ROOM).consume_once()
    assert await pg.fetchval(KEYS, Kind.TO_DEVICE) == messages
    assert await pg.fetchval(WAITING) == 0


def files_for(directory: Path, database: str, bot: Appservice, **delivery: int) -> Files:
    return write_files(
        directory,
        database,
        [registration("bot", bot.url, users=["@b_.*"])],
        capture="triggers",
        delivery=delivery,
    )


def numbers(bot: Appservice) -> list[int]:
    return [item["content"]["n"] for item in bot.to_device]


async def test_a_message_of_which_only_the_key_waits_is_read_at_the_seal_in_order(
    pg: Connection, db: Database, database: str, tmp_path: Path
) -> None:
    await wait_as_keys(pg, db, 60, padding="x" * 2000)
    await pg.execute(  # so that far less is sent than is read
        "update public.device_inbox set message_json ="
        " '{\"unsigned\": \"' || repeat('x', 5000) || '\", ' || substr(message_json, 2)"
    )
    async with appservice() as bot:
        async with worker(files_for(tmp_path, database, bot, max_body_bytes=20_000)):
            await send(pg, BOT, 61, n=61)
            await bot.until(lambda: len(bot.to_device) == 61)
        assert numbers(bot) == list(range(1, 62))
        assert max(len(request.body) for request in bot.requests) <= 20_000
        assert len(bot.requests) >= 6
        await purge.purge_once(db, asyncio.Event())
        assert await pg.fetchval(WAITING) == 0


async def test_what_was_read_at_the_seal_does_not_change_when_the_worker_is_killed(
    pg: Connection, db: Database, database: str, tmp_path: Path
) -> None:
    await wait_as_keys(pg, db, 20)
    async with appservice() as bot:
        bot.answer = lambda _: (500, {}, b"")
        async with worker_process(files_for(tmp_path, database, bot, max_items=10)) as one:
            await bot.until(lambda: len(bot.requests) >= 2)
            await one.kill()
            await pg.execute("delete from public.device_inbox where stream_id <= 10")
            seen = bot.requests[0]
            before = len(bot.requests)
            await one.start()
            await bot.until(lambda: len(bot.requests) > before)
            bot.answer = lambda _: (200, {}, b"{}")
            await bot.until(lambda: len(bot.to_device) == 20)
        assert {(one.txn_id, one.body) for one in bot.requests if one.txn_id == seen.txn_id} == {
            (seen.txn_id, seen.body)
        }
        assert numbers(bot) == list(range(1, 21))


async def test_dying_before_the_seals_commit_leaves_the_keys_as_they_were(
    pg: Connection,
    db: Database,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await wait_as_keys(pg, db, 3)
    insert, cuts, left = sealed.insert, [True], []
    other = await asyncpg.connect(database)

    async def cut_before(conn: Connection, *rest: object, **more: object) -> None:
        if cuts:
            cuts.pop()
            pid = await conn.fetchval("select pg_backend_pid()")
            await other.execute("select pg_terminate_backend($1)", pid)
            left.append(await other.fetchval(KEYS, Kind.TO_DEVICE))
        await insert(conn, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(sealed, "insert", cut_before)
    async with appservice() as bot, worker(files_for(tmp_path, database, bot)):
        await bot.until(lambda: len(bot.to_device) == 3)
        assert left == [3]
        assert numbers(bot) == [1, 2, 3]
        assert await pg.fetchval("select count(*) from appservice_bridge.dead_letter") == 0
    await other.close()


async def test_what_the_homeserver_no_longer_holds_is_one_dead_letter_and_the_rest_goes_on(
    pg: Connection, db: Database, database: str, tmp_path: Path
) -> None:
    await wait_as_keys(pg, db, 5)
    await pg.execute("delete from public.device_inbox where stream_id = 2")
    await pg.execute("update public.device_inbox set message_json = '[]' where stream_id = 4")
    async with appservice() as bot:
        bot.answer = lambda _: (500, {}, b"")
        files = files_for(tmp_path, database, bot)
        async with worker(files):
            await bot.until(lambda: len(bot.requests) >= 1)
        bot.answer = lambda _: (200, {}, b"{}")
        async with worker(files):
            await bot.until(lambda: len(bot.to_device) == 3)
        assert numbers(bot) == [1, 3, 5]
        assert len({request.body for request in bot.requests}) == 1
    letters = await pg.fetch(
        "select stream_id, reason, user_id, device_id, payload from appservice_bridge.dead_letter"
        " order by stream_id"
    )
    assert [tuple(row) for row in letters] == [
        (2, GONE, BOT, "DEV", None),
        (4, "not an object", BOT, "DEV", b"[]"),
    ]
    buried = "select items from appservice_bridge.ledger where outcome = 'buried'"
    assert await pg.fetchval(buried) == 2
    await purge.purge_once(db, asyncio.Event())
    assert await pg.fetchval("select count(*) from appservice_bridge.outbox") == 0


async def test_where_all_are_gone_the_lane_steps_over_them(
    pg: Connection, db: Database, database: str, tmp_path: Path
) -> None:
    await wait_as_keys(pg, db, 30)
    await pg.execute("delete from public.device_inbox")
    async with appservice() as bot, worker(files_for(tmp_path, database, bot, max_items=10)):
        await send(pg, BOT, 31, n=31)
        await bot.until(lambda: len(bot.to_device) == 1)
        assert numbers(bot) == [31]
        assert len(bot.requests) == 1
    assert await pg.fetchval("select count(*) from appservice_bridge.dead_letter") == 30


async def test_case_27_bytes_of_a_deleted_devices_messages_wait_no_more(
    pg: Connection, db: Database, database: str, tmp_path: Path
) -> None:
    await attach(pg)
    owners = registered(("bot", "@b_.*"))
    await go_live(db, await announce(db, owners, epoch="test"))
    await pg.execute("insert into public.devices (user_id, device_id) values ($1, 'DEV')", BOT)
    for n in range(1, 4):
        await send(pg, BOT, n, n=n)
    intake = Intake(db, owners, nobody)
    await intake.consume_once()
    assert await pg.fetchval(WAITING) > 0
    await pg.execute("delete from public.devices where device_id = 'DEV'")
    await intake.consume_once()
    await send(pg, BOT.replace("1", "2"), 4, n=4)
    async with appservice() as bot, worker(files_for(tmp_path, database, bot)):
        await bot.until(lambda: len(bot.to_device) == 1)
        assert numbers(bot) == [4]
        async with asyncio.timeout(60):
            while await pg.fetchval(WAITING) != 0:
                await asyncio.sleep(0.1)
