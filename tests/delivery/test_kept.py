"""What is kept after its ack: for how long, what it costs, and how it is delivered once more."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from appservice_bridge.delivery.purge import Retention, purge_once
from appservice_bridge.domain.budget import Budget
from appservice_bridge.storage import kept
from appservice_bridge.storage.database import Database
from tests.support import connecting
from tests.support.appservice import Appservice, Request, appservice, ok
from tests.support.bridge import Files, registration, worker, worker_process, write_files
from tests.support.command import command
from tests.support.facts import Connection, attach, capture, outbox, relay, send
from tests.support.refusing import capture_all

BOT: Final = "@b_1:example.org"
DAY: Final = 86_400
TO_DEVICE: Final = "de.sorunome.msc2409.to_device"
KEPT: Final = "select txn_id from appservice_bridge.kept order by number"
AGE: Final = "update appservice_bridge.kept set acked_at = acked_at - make_interval(secs => $1)"
COUNTED: Final = """
select coalesce(sum(items), 0)::int from appservice_bridge.ledger where outcome = $1
"""
WAITING_BYTES: Final = """
select (h.bytes_in - l.bytes_out)::int from appservice_bridge.outbox_head h
  join appservice_bridge.lane l using (appservice_id)
"""


def files_for(directory: Path, database: str, bot: Appservice, **delivery: Any) -> Files:
    keep = {"keep_delivered_seconds": DAY, "max_items": 2}
    return write_files(
        directory,
        database,
        [registration("bot", bot.url, users=["@b_.*"])],
        delivery=keep | delivery,
    )


@asynccontextmanager
async def delivered(
    pg: Connection, directory: Path, database: str, **delivery: Any
) -> AsyncIterator[tuple[Appservice, Files]]:
    """Messages 1 to 4 and a room event were taken, in transactions of two; no worker runs."""
    async with appservice() as bot:
        files = files_for(directory, database, bot, **delivery)
        for n in range(1, 5):
            await capture(pg, BOT, n)
        await relay(pg, "bot", "$5")
        async with worker(files):
            await bot.until(lambda: len(bot.events) == 1)
            await acked(pg, 5)
        yield bot, files


async def acked(pg: Connection, position: int) -> None:
    async with asyncio.timeout(60):
        while await pg.fetchval("select acked_to from appservice_bridge.lane") < position:
            await asyncio.sleep(0.02)


async def purged(db: Database, *, keep: float, budget: Budget | None = None) -> int:
    retention = Retention(keep_seconds={"bot": keep}, budget=budget or Budget())
    return await purge_once(db, asyncio.Event(), retention)


def numbers(bot: Appservice) -> list[int]:
    return [item["content"]["n"] for item in bot.to_device]


async def run(files: Files, *arguments: str) -> tuple[int, str, str]:
    return await command("replay", *arguments, "--config", str(files.config))


async def test_by_default_nothing_is_kept(pg: Connection, database: str, tmp_path: Path) -> None:
    async with delivered(pg, tmp_path, database, keep_delivered_seconds=0) as (_, files):
        assert await pg.fetch(KEPT) == []
        code, _, said = await run(files, "bot", "--since", "1h")
    assert (code, "keep_delivered_seconds is 0" in said) == (1, True)


async def test_what_is_kept_is_purged_when_its_time_is_over_and_not_before(
    pg: Connection, db: Database, database: str, tmp_path: Path
) -> None:
    async with delivered(pg, tmp_path, database):
        await purged(db, keep=DAY)
        assert await outbox(pg) == [1, 2, 3, 4, "$5"]
        assert await pg.fetchval(WAITING_BYTES) > 100
        await pg.execute(AGE + " where number <= 2", DAY)
        assert await purged(db, keep=DAY) == 4
        assert await outbox(pg) == ["$5"]
        assert len(await pg.fetch(KEPT)) == 1
        await pg.execute(AGE, DAY)
        assert await purged(db, keep=DAY) == 1
    assert await pg.fetch(KEPT) == []
    assert await pg.fetchval(WAITING_BYTES) == 0


async def test_time_goes_on_while_no_worker_runs(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with delivered(pg, tmp_path, database) as (_, files):
        await pg.execute(AGE, DAY)
        code, _, said = await run(files, "bot", "--since", "30d")
        assert (code, said.startswith("appservice-bridge: nothing of bot")) == (1, True)
        async with worker(files), asyncio.timeout(60):
            while await outbox(pg):
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("keep", [0, 60])
async def test_a_shorter_time_holds_for_what_is_kept_already(
    pg: Connection, db: Database, database: str, tmp_path: Path, keep: float
) -> None:
    async with delivered(pg, tmp_path, database):
        await pg.execute(AGE, 61)
        assert await purged(db, keep=keep) == 5


async def test_what_was_acknowledged_while_the_clock_was_ahead_is_not_kept_for_longer(
    pg: Connection, db: Database, database: str, tmp_path: Path
) -> None:
    async with delivered(pg, tmp_path, database):
        await pg.execute(AGE, -30 * DAY)
        assert await purged(db, keep=DAY) == 5


async def test_what_is_kept_gives_way_to_what_waits(
    pg: Connection, db: Database, database: str, tmp_path: Path
) -> None:
    async with delivered(pg, tmp_path, database):
        all_of_it = await pg.fetchval(WAITING_BYTES)
        await purged(db, keep=DAY, budget=Budget(appservice_bytes=all_of_it + 1))
        assert len(await outbox(pg)) == 5
        await purged(db, keep=DAY, budget=Budget(appservice_bytes=all_of_it))
        assert await outbox(pg) == []


async def test_a_replay_puts_all_of_it_behind_what_waits_under_new_ids(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with delivered(pg, tmp_path, database) as (bot, files):
        before = {request.txn_id for request in bot.taken}
        await capture(pg, BOT, 6)
        async with worker(files):
            await bot.until(lambda: len(bot.to_device) == 5)
            await acked(pg, 6)
        assert await run(files, "bot", "--since", "1h") == (
            0,
            "1 event, 5 to_device of 4 transactions will be delivered again\n",
            "",
        )
        async with worker(files):
            await bot.until(lambda: len(bot.to_device) == 10)
    assert numbers(bot) == [1, 2, 3, 4, 6, 1, 2, 3, 4, 6]
    assert [event["event_id"] for event in bot.events] == ["$5", "$5"]
    assert len({request.txn_id for request in bot.taken} - before) >= 4
    assert await pg.fetchval(COUNTED, "replayed") == 6
    assert await pg.fetchval(COUNTED, "delivered") == 12


async def test_one_transaction_is_replayed_by_its_id_beside_a_worker_at_once(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with delivered(pg, tmp_path, database) as (bot, files), worker_process(files):
        second = bot.taken[1].txn_id
        code, said, _ = await run(files, "bot", "--transaction", second)
        assert (code, said) == (0, "2 to_device of 1 transactions will be delivered again\n")
        await bot.until(lambda: len(bot.to_device) == 6)
        assert numbers(bot) == [1, 2, 3, 4, 3, 4]
        assert (await run(files, "bot", "--transaction", "ab0-1"))[0] == 1
        assert (await run(files, "cat", "--since", "1h"))[0] == 1
        assert (await run(files, "bot"))[0] == 2
        assert (await run(files, "bot", "--since", "long"))[0] == 2


async def test_intake_and_replays_at_once_give_every_position_once(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with delivered(pg, tmp_path, database) as (bot, files), worker_process(files):

        async def feed() -> None:
            for n in range(101, 201):
                await capture(pg, BOT, n)
                await asyncio.sleep(0.005)

        replays = (run(files, "bot", "--since", "1h") for _ in range(3))
        done = await asyncio.gather(feed(), *replays)
        assert [one[0] for one in done[1:] if one is not None] == [0, 0, 0]
        await bot.until(lambda: len(bot.to_device) >= 104 + 12)
        ours = [n for n in numbers(bot) if n > 100]
        assert list(dict.fromkeys(ours)) == list(range(101, 201))
        head = await pg.fetchval("select position from appservice_bridge.outbox_head")
        await acked(pg, head)
        assert await pg.fetchval(COUNTED, "delivered") == head


async def test_the_homeservers_copy_leaves_its_inbox_at_once_and_is_noted_only_once(
    pg: Connection, db: Database, database: str, tmp_path: Path
) -> None:
    await attach(pg)
    noted = "select stream_id from appservice_bridge.inbox_delivered order by stream_id"
    async with appservice() as bot:
        files = files_for(tmp_path, database, bot)
        for n in (1, 2, 3):
            await send(pg, BOT, n, n=n)
        async with worker(files):
            await bot.until(lambda: len(bot.to_device) == 3)
            await acked(pg, 3)
        retention = Retention(cleaned={"bot"}, keep_seconds={"bot": DAY})
        await purge_once(db, asyncio.Event(), retention)
        assert [row[0] for row in await pg.fetch(noted)] == [1, 2, 3]
        await pg.execute("delete from appservice_bridge.inbox_delivered")  # as the cleaner does
        assert (await run(files, "bot", "--since", "1h"))[0] == 0
        async with worker(files):
            await bot.until(lambda: len(bot.to_device) == 6)
            await acked(pg, 6)
        await pg.execute(AGE, DAY)
        assert await purge_once(db, asyncio.Event(), retention) == 6
        assert await pg.fetch(noted) == []


async def test_dying_between_keeping_and_the_ack_keeps_nothing_twice(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        bot.delay_seconds = 0.3
        files = files_for(tmp_path, database, bot)
        await capture(pg, BOT, 1)
        async with worker_process(files) as killed:
            await pg.execute("begin")
            await pg.execute("lock table appservice_bridge.kept in exclusive mode")
            await bot.until(lambda: len(bot.taken) == 1)
            await asyncio.sleep(0.3)
            await killed.kill()
            await pg.execute("rollback")
            assert await pg.fetch(KEPT) == []
            await pg.execute("update appservice_bridge.worker set alive_until = now()")
            await killed.start()
            await acked(pg, 1)
        assert len({(one.txn_id, one.body) for one in bot.taken}) == 1
        assert [row[0] for row in await pg.fetch(KEPT)] == [bot.taken[0].txn_id]


async def test_status_tells_what_is_kept_from_what_waits(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with delivered(pg, tmp_path, database) as (_, files):
        _, said, _ = await command("status", "--json", "--config", str(files.config))
    [lane] = json.loads(said)["lanes"]
    assert (lane["waiting"], lane["waiting_bytes"]) == (0, 0)
    assert lane["kept_bytes"] == await pg.fetchval(WAITING_BYTES)


async def test_without_keeping_an_ack_asks_nothing_more_of_the_database(
    pg: Connection, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    async def noted(*of: object, **more: object) -> None:
        asked.append((of, more))

    monkeypatch.setattr(kept, "keep", noted)
    async with delivered(pg, tmp_path, database, keep_delivered_seconds=0):
        assert asked == []


@asynccontextmanager
async def split_unevenly(
    pg: Connection, directory: Path, database: str
) -> AsyncIterator[tuple[Appservice, Files]]:
    """Messages 1 to 8 were taken; of the two halves, the first had to be halved again."""
    async with appservice() as bot:
        refused = {"many": [1, 2, 3, 4]}

        def answer(request: Request) -> tuple[int, dict[str, str], bytes]:
            sent = [item["content"]["n"] for item in request.items(TO_DEVICE)]
            return (
                (413, {}, b"") if sent[: len(refused["many"])] == refused["many"] else ok(request)
            )

        bot.answer = answer
        files = files_for(directory, database, bot, max_items=8)
        await capture_all(pg, 8)
        async with worker(files):
            await bot.until(lambda: len(bot.to_device) == 8)
            await acked(pg, 8)
        yield bot, files


async def test_parts_of_what_was_split_are_replayed_in_their_order(
    pg: Connection, db: Database, database: str, tmp_path: Path
) -> None:
    async with split_unevenly(pg, tmp_path, database) as (bot, files):
        assert numbers(bot) == list(range(1, 9))
        assert len(bot.taken) == 3
        await purged(db, keep=DAY)
        assert await outbox(pg) == list(range(1, 9))
        code, said, _ = await run(files, "bot", "--since", "1h")
        assert (code, said) == (0, "8 to_device of 3 transactions will be delivered again\n")
        async with worker(files):
            await bot.until(lambda: len(bot.to_device) == 16)
    assert numbers(bot) == [*range(1, 9), *range(1, 9)]


async def test_what_was_asked_for_and_acknowledged_is_kept_as_well(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = connecting.files_for(
        tmp_path, database, "poll", delivery={"keep_delivered_seconds": DAY}
    )
    await capture(pg, BOT, 1)
    async with worker(files), connecting.polling(files) as bot:
        asked = await bot.next()
        assert await bot.ack(asked.txn_id) == 200
        assert [row["txn_id"] for row in await pg.fetch(KEPT)] == [asked.txn_id]
        assert (await run(files, "bot", "--transaction", asked.txn_id))[0] == 0
        again = await bot.next()
    assert again.numbers == asked.numbers == [1]
    assert again.txn_id != asked.txn_id
