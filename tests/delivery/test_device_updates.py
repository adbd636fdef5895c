"""What a transaction tells of devices: the latest state, frozen with it, and told once."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.appservice import Appservice, appservice
from tests.support.bridge import Files, registration, worker, write_files
from tests.support.facts import Connection, attach, capture, relay, wait_until

ALL_ROUTED: Final = "select not exists (select from appservice_bridge.capture_log)"
BOT: Final = "@b_1:example.org"
FRIEND: Final = "@friend:elsewhere.org"
LISTS: Final = "org.matrix.msc3202.device_lists"
COUNTS: Final = "org.matrix.msc3202.device_one_time_keys_count"
FALLBACK: Final = "org.matrix.msc3202.device_unused_fallback_key_types"


@pytest.fixture
async def bot() -> AsyncIterator[Appservice]:
    async with appservice() as one:
        yield one


@pytest.fixture
async def files(pg: Connection, database: str, bot: Appservice, tmp_path: Path) -> Files:
    """A bridge with the capture on Synapse's tables, whose appservice is told nothing yet."""
    await attach(pg)
    await device(pg, BOT, "DEV")
    await pg.execute("reset search_path")
    appservices = [registration("bot", bot.url, users=["@b_.*"])]
    return write_files(tmp_path, database, appservices, capture="triggers")


async def device(pg: Connection, user: str, name: str, *, hidden: bool = False) -> None:
    await pg.execute(
        "insert into public.devices (user_id, device_id, hidden) values ($1, $2, $3)",
        user,
        name,
        hidden,
    )


async def upload(pg: Connection, user: str, name: str, *key_ids: str) -> None:
    """One-time keys, as Synapse stores them."""
    for key_id in key_ids:
        await pg.execute(
            "insert into public.e2e_one_time_keys_json (user_id, device_id, algorithm, key_id,"
            " ts_added_ms, key_json) values ($1, $2, 'signed_curve25519', $3, 0, '{}')",
            user,
            name,
            key_id,
        )


async def delivered(pg: Connection, kind: str, items: int) -> None:
    """Wait until so many of a kind were acknowledged."""
    counted = "select items from appservice_bridge.ledger where kind = $1 and outcome = 'delivered'"
    async with asyncio.timeout(60):
        while (await pg.fetchval(counted, kind) or 0) < items:
            await asyncio.sleep(0.02)


async def routed(pg: Connection, position: int) -> None:
    """Wait until the outbox reaches a position."""
    await pg.execute("notify appservice_bridge_capture")
    async with asyncio.timeout(60):
        while await pg.fetchval("select position from appservice_bridge.outbox_head") < position:
            await asyncio.sleep(0.02)


async def changed(pg: Connection, user: str, change: str = "changed") -> None:
    await pg.execute(
        "insert into appservice_bridge.capture_log (kind, appservice_id, user_id, body)"
        " values ('device_list', 'bot', $1, $2)",
        user,
        change.encode(),
    )
    await pg.execute("notify appservice_bridge_capture")


def told(bot: Appservice, field: str) -> list[Any]:
    """That field of every transaction that has it and was answered, each once."""
    bodies = {request.txn_id: json.loads(request.body) for request in bot.requests}
    return [body[field] for body in bodies.values() if field in body]


def counts(bot: Appservice, name: str = "DEV") -> list[Any]:
    """What was told of one device's one-time keys, in order."""
    return [by_user[BOT][name] for by_user in told(bot, COUNTS) if name in by_user.get(BOT, {})]


async def test_counts_and_types_are_told_alone_with_explicit_zeros(
    pg: Connection, bot: Appservice, files: Files
) -> None:
    async with worker(files):
        await upload(pg, BOT, "DEV", "A", "B")
        await bot.until(lambda: {"signed_curve25519": 2} in counts(bot))
        await pg.execute("delete from public.e2e_one_time_keys_json where user_id = $1", BOT)
        await bot.until(lambda: counts(bot)[-1] == {"signed_curve25519": 0})
        await pg.execute(
            "insert into public.e2e_fallback_keys_json (user_id, device_id, algorithm, key_id,"
            " key_json, used) values ($1, 'DEV', 'signed_curve25519', 'F', '{}', false)",
            BOT,
        )
        types = {BOT: {"DEV": ["signed_curve25519"]}}
        await bot.until(lambda: told(bot, FALLBACK)[-1] == types)
        await pg.execute("update public.e2e_fallback_keys_json set used = true")
        await bot.until(lambda: told(bot, FALLBACK)[-1] == {BOT: {"DEV": []}})
    assert all(json.loads(request.body)["events"] == [] for request in bot.requests)


async def test_hidden_devices_and_users_of_nobody_are_never_told_of(
    pg: Connection, bot: Appservice, files: Files
) -> None:
    await device(pg, BOT, "MASTER", hidden=True)
    await device(pg, "@alice:example.org", "DEV")
    async with worker(files):
        for user, name in ((BOT, "MASTER"), ("@alice:example.org", "DEV"), (BOT, "DEV")):
            await upload(pg, user, name, "A")
        await bot.until(lambda: {"signed_curve25519": 1} in counts(bot))
        await asyncio.sleep(0.2)
    assert {user for by_user in told(bot, COUNTS) for user in by_user} == {BOT}
    assert counts(bot, "MASTER") == []


async def test_a_left_alone_makes_a_transaction_and_the_latest_wins(
    pg: Connection, bot: Appservice, files: Files
) -> None:
    async with worker(files):
        await changed(pg, FRIEND, "left")
        await bot.until(lambda: {"changed": [], "left": [FRIEND]} in told(bot, LISTS))
        await delivered(pg, "device_list", 1)
        before = len(bot.requests)
        bot.answer = lambda _: (500 if len(bot.requests) < before + 3 else 200, {}, b"{}")
        await changed(pg, FRIEND, "changed")
        await bot.until(lambda: len(bot.requests) > before)
        for change in ("left", "changed", "left"):
            await changed(pg, FRIEND, change)  # while the first is sealed and refused
        await bot.until(lambda: told(bot, LISTS)[-1] == {"changed": [], "left": [FRIEND]})
        await delivered(pg, "device_list", 3)
    assert told(bot, LISTS) == [
        {"changed": [], "left": [FRIEND]},
        {"changed": [FRIEND], "left": []},
        {"changed": [], "left": [FRIEND]},
    ]
    assert await pg.fetchval("select count(*) from appservice_bridge.device_list_update") == 0


async def test_counts_are_frozen_with_their_transaction_and_fresh_in_the_next(
    pg: Connection, bot: Appservice, files: Files
) -> None:
    bot.answer = lambda _: (500 if len(bot.requests) < 4 else 200, {}, b"{}")
    async with worker(files):
        await upload(pg, BOT, "DEV", "A")
        await bot.until(lambda: len(bot.requests) >= 1)
        await upload(pg, BOT, "DEV", "B", "C")
        await bot.until(lambda: {"signed_curve25519": 3} in counts(bot))
    first = [request for request in bot.requests if request.txn_id == bot.requests[0].txn_id]
    assert len(first) == 4
    assert len({request.body for request in first}) == 1
    assert counts(bot)[0] == {"signed_curve25519": 1}


async def test_a_seal_that_was_not_sent_tells_the_same_after_a_restart(
    pg: Connection, bot: Appservice, files: Files
) -> None:
    bot.answer = lambda _: (500, {}, b"")
    async with worker(files):
        await changed(pg, FRIEND)
        await upload(pg, BOT, "DEV", "A")
        await bot.until(lambda: len(bot.requests) >= 1)
    body, txn_id = bot.requests[-1].body, bot.requests[-1].txn_id
    bot.answer = lambda _: (200, {}, b"{}")
    async with worker(files):
        await delivered(pg, "device_list", 1)
        await delivered(pg, "device_keys", 1)
    assert {request.body for request in bot.requests if request.txn_id == txn_id} == {body}


async def test_case_31_what_waits_is_no_longer_than_the_users_and_devices_it_speaks_of(
    pg: Connection, bot: Appservice, files: Files
) -> None:
    def later() -> list[Any]:
        return [
            json.loads(request.body)[LISTS]
            for request in bot.requests
            if request.txn_id != first and LISTS in json.loads(request.body)
        ]

    bot.answer = lambda _: (503, {}, b"")
    async with worker(files):
        await relay(pg, "bot", "$first")
        await bot.until(lambda: len(bot.requests) >= 1)
        first = bot.requests[0].txn_id
        for n in range(30):
            await changed(pg, f"@f{n % 3}:elsewhere.org", "left" if n % 2 else "changed")
            await upload(pg, BOT, "DEV", f"K{n}")
        bot.answer = lambda _: (200, {}, b"{}")
        await bot.until(lambda: counts(bot) != [] and counts(bot)[-1]["signed_curve25519"] == 30)
        await bot.until(lambda: sum(len(one["changed"] + one["left"]) for one in later()) >= 3)

    assert sum(len(one["changed"] + one["left"]) for one in later()) == 3


async def test_device_updates_keep_to_the_limits_in_pages_and_leave_room_for_messages(
    pg: Connection, database: str, bot: Appservice, files: Files, tmp_path: Path
) -> None:
    del files
    limits = {"max_items": 10, "max_body_bytes": 4000}
    appservices = [registration("bot", bot.url, users=["@b_.*"])]
    small = write_files(tmp_path, database, appservices, capture="triggers", delivery=limits)
    await pg.execute(
        "insert into appservice_bridge.capture_log (kind, appservice_id, user_id, body)"
        " select 'device_list', 'bot', '@' || repeat('f', 100) || n || ':elsewhere.org', 'changed'"
        "   from generate_series(1, 100) n"
    )
    await capture(pg, BOT, 1)
    async with worker(small):
        await bot.until(lambda: sum(len(one["changed"]) for one in told(bot, LISTS)) >= 100)
    users = [user for one in told(bot, LISTS) for user in one["changed"]]
    assert len(users) == len(set(users)) == 100
    assert all(len(request.body) <= 4000 for request in bot.requests)
    assert len(bot.to_device) == 1
    assert bot.requests[0].body.count(b"to_user_id") == 1


async def test_case_27_what_is_not_sealed_is_dropped_and_what_is_sealed_does_not_change(
    pg: Connection, bot: Appservice, files: Files
) -> None:
    bot.answer = lambda _: (500, {}, b"")
    async with worker(files):
        await capture(pg, BOT, 1)
        await bot.until(lambda: len(bot.requests) >= 1)
        for n in (2, 3):
            await capture(pg, BOT, n)
        await capture(pg, "@b_2:example.org", 4)
        await wait_until(pg, ALL_ROUTED)
        await pg.execute("delete from public.devices where user_id = $1", BOT)
        await device(pg, BOT, "DEV")
        await capture(pg, BOT, 5)
        await wait_until(pg, ALL_ROUTED)
        bot.answer = lambda _: (200, {}, b"{}")
        await bot.until(lambda: len(bot.to_device) >= 3)
    numbers = [item["content"]["n"] for item in bot.to_device]
    assert list(dict.fromkeys(numbers)) == [1, 4, 5]
    dropped = "select items from appservice_bridge.ledger where outcome = 'dropped'"
    assert await pg.fetchval(dropped) == 2
    assert await pg.fetchval("select count(*) from appservice_bridge.deleted_device") <= 1


async def test_whole_transactions_of_nothing_are_stepped_over(
    pg: Connection, database: str, bot: Appservice, files: Files, tmp_path: Path
) -> None:
    del files
    appservices = [registration("bot", bot.url, users=["@b_.*"])]
    small = write_files(
        tmp_path, database, appservices, capture="triggers", delivery={"max_items": 2}
    )
    bot.answer = lambda _: (500, {}, b"")
    async with worker(small):
        await capture(pg, BOT, 0)
        await bot.until(lambda: len(bot.requests) >= 1)
        for n in range(1, 8):
            await capture(pg, BOT, n)
            if n in (3, 7):  # deleted twice
                await routed(pg, n + 1)
                await pg.execute("delete from public.devices where user_id = $1", BOT)
                await device(pg, BOT, "DEV")
        await capture(pg, BOT, 9)
        await routed(pg, 9)
        bot.answer = lambda _: (200, {}, b"{}")
        await bot.until(lambda: len(bot.to_device) >= 2)
        await delivered(pg, "to_device", 2)
    assert [item["content"]["n"] for item in bot.to_device] == [0, 9]
    waiting = "select position - acked_to from appservice_bridge.lane natural join %s.outbox_head"
    assert await pg.fetchval(waiting % "appservice_bridge") == 0


async def test_what_a_command_writes_for_a_lane_is_told_within_a_poll(
    pg: Connection, bot: Appservice, files: Files
) -> None:
    async with worker(files):
        await asyncio.sleep(0.5)
        for table, columns in (
            ("device_key_state", "(appservice_id, user_id, device_id, recount)"),
            ("device_list_update", "(appservice_id, user_id, change)"),
        ):
            more = "'DEV', true" if table == "device_key_state" else "'changed'"
            await pg.execute(
                f"insert into appservice_bridge.{table} {columns} values ('bot', $1, {more})", BOT
            )
            field = COUNTS if table == "device_key_state" else LISTS
            await bot.until(lambda field=field: told(bot, field) != [])  # type: ignore[misc]


async def test_a_table_of_synapse_s_that_changed_keeps_no_message_back(
    pg: Connection, bot: Appservice, files: Files
) -> None:
    await pg.execute("alter table public.e2e_fallback_keys_json rename column used to was_used")
    async with worker(files):
        await upload(pg, BOT, "DEV", "A")
        await capture(pg, BOT, 1)
        await bot.until(lambda: len(bot.to_device) == 1)
        assert counts(bot) == []
        await pg.execute("alter table public.e2e_fallback_keys_json rename was_used to used")
        await bot.until(lambda: {"signed_curve25519": 1} in counts(bot))
