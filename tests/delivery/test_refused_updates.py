"""What is told of devices, where the appservice refuses that, or the items beside it."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.appservice import Appservice, Request, appservice, ok
from tests.support.bridge import Files, registration, worker, write_files
from tests.support.facts import Connection, capture, message, wait_until
from tests.support.refusing import (
    BOT,
    buried,
    capture_all,
    lane,
    ledger,
    numbers,
    probes,
    refuses,
    sent_all,
)

LISTS: Final = "org.matrix.msc3202.device_lists"
COUNTS: Final = "org.matrix.msc3202.device_one_time_keys_count"


@pytest.fixture
async def bot() -> AsyncIterator[Appservice]:
    async with appservice() as one:
        yield one


def bridge(directory: Path, database: str, bot: Appservice, **delivery: Any) -> Files:
    ours = [registration("bot", bot.url, users=["@b_.*"])]
    return write_files(directory, database, ours, delivery=delivery)


async def waits(pg: Connection, users: list[str], devices: list[str], messages: int = 0) -> None:
    """All of it waits before the first transaction is sealed."""
    await pg.execute("update appservice_bridge.lane set paused_at = now()")
    await pg.execute(
        "insert into appservice_bridge.device_list_update (appservice_id, user_id, change)"
        " select 'bot', u, 'changed' from unnest($1::text[]) u",
        users,
    )
    await pg.execute(
        "insert into appservice_bridge.device_key_state"
        " (appservice_id, user_id, device_id, recount, counts, fallback_types)"
        " select 'bot', $1, d, false, '{\"signed_curve25519\":5}', '[]' from unnest($2::text[]) d",
        BOT,
        devices,
    )
    if messages:
        await capture_all(pg, messages)
        routed = "select position = %d from appservice_bridge.outbox_head"
        await wait_until(pg, routed % messages)
    await pg.execute("update appservice_bridge.lane set paused_at = null")
    await pg.execute("notify appservice_bridge_outbox")


async def told_all(pg: Connection) -> None:
    """Nothing is in flight, and nothing waits to be told."""
    await wait_until(
        pg,
        "select not exists (select from appservice_bridge.sealed)"
        " and not exists (select from appservice_bridge.device_list_update)"
        " and not exists (select from appservice_bridge.device_key_state"
        "                  where waiting or sealed_in is not null)",
    )


def users_told(bot: Appservice) -> list[str]:
    bodies = [json.loads(one.body) for one in bot.taken]
    return [user for body in bodies if LISTS in body for user in body[LISTS]["changed"]]


def devices_told(bot: Appservice) -> list[str]:
    bodies = [json.loads(one.body) for one in bot.taken]
    return [name for body in bodies for name in body.get(COUNTS, {}).get(BOT, {})]


USERS: Final = [f"@f{n:02}:elsewhere.org" for n in range(12)]
DEVICES: Final = [f"D{n:02}" for n in range(12)]


@pytest.mark.parametrize("status", [400, 413])
@pytest.mark.parametrize(
    ("poison", "kind"), [("@f07:elsewhere.org", "device_list"), ("D03", "device_keys")]
)
async def test_one_user_or_device_that_is_refused_is_found_and_the_others_are_told(
    pg: Connection,
    database: str,
    bot: Appservice,
    tmp_path: Path,
    status: int,
    poison: str,
    kind: str,
) -> None:
    bot.answer = refuses(status, poison.encode())
    async with worker(bridge(tmp_path, database, bot)):
        await waits(pg, USERS, DEVICES, messages=10)
        await told_all(pg)
        await sent_all(pg)
        assert numbers(bot.to_device) == list(range(1, 11))
        # smaller transactions, until all is well again
        assert await lane(pg, "updates_cap") is not None
        for n in range(12):
            await waits(pg, [f"@g{n}:elsewhere.org"], [])
            await told_all(pg)
        assert await lane(pg, "updates_cap") is None
    assert sorted(user for user in users_told(bot) if user[1] == "f") == [
        user for user in USERS if user != poison
    ]
    assert sorted(devices_told(bot)) == [device for device in DEVICES if device != poison]
    (letter,) = await buried(pg)
    assert (letter["kind"], letter["status"], letter["redrivable"]) == (kind, status, False)
    assert (letter["device_id"] or letter["user_id"], letter["payload"]) == (poison, None)
    assert await ledger(pg, "buried") == {kind: 1}
    assert (await ledger(pg, "delivered"))["to_device"] == 10


async def test_case_21_one_item_is_tried_without_what_it_tells_of_devices_before_it_is_buried(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path
) -> None:
    def answer(request: Request) -> tuple[int, dict[str, str], bytes]:
        return (413, {}, b"") if len(request.body) > 3000 else ok(request)

    bot.answer = answer
    async with worker(bridge(tmp_path, database, bot)):
        await pg.execute("update appservice_bridge.lane set paused_at = now()")
        await capture(pg, BOT, 1, message(n=1, padding="x" * 2500).encode())
        await wait_until(pg, "select position = 1 from appservice_bridge.outbox_head")
        await waits(pg, USERS, DEVICES)
        await told_all(pg)
        await sent_all(pg)
    first, second, *_ = bot.requests
    assert LISTS in json.loads(first.body)
    assert LISTS not in json.loads(second.body)
    assert first.txn_id != second.txn_id
    assert probes(bot.requests) == []
    assert numbers(bot.to_device) == [1]
    assert sorted(users_told(bot)) == USERS
    assert sorted(devices_told(bot)) == DEVICES
    assert await buried(pg) == []


async def test_poison_among_the_items_is_found_and_what_is_told_of_devices_is_told_once(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.answer = refuses(400)
    async with worker(bridge(tmp_path, database, bot)):
        await pg.execute("update appservice_bridge.lane set paused_at = now()")
        await capture_all(pg, 9, poison=[5])
        await wait_until(pg, "select position = 9 from appservice_bridge.outbox_head")
        await waits(pg, USERS, DEVICES)
        await sent_all(pg)
        await told_all(pg)
    assert numbers(bot.to_device) == [1, 2, 3, 4, 6, 7, 8, 9]
    assert sorted(users_told(bot)) == USERS
    assert sorted(devices_told(bot)) == DEVICES
    assert [letter["kind"] for letter in await buried(pg)] == ["to_device"]


async def test_what_changed_again_while_it_was_refused_is_told_and_not_buried(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.answer = refuses(400, b'"signed_curve25519":5')
    async with worker(bridge(tmp_path, database, bot)):
        await waits(pg, [], ["D1"])
        await bot.until(lambda: len(bot.requests) == 1)
        await pg.execute(
            "update appservice_bridge.device_key_state"
            " set waiting = true, counts = '{\"signed_curve25519\":6}'"
        )
        await told_all(pg)
    assert json.loads(bot.taken[-1].body)[COUNTS] == {BOT: {"D1": {"signed_curve25519": 6}}}
    assert await buried(pg) == []
