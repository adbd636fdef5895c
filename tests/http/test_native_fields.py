"""What any other homeserver's transactions tell of devices is delivered like every other fact."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

from tests.support.appservice import Appservice, appservice
from tests.support.bridge import registration
from tests.support.relaying import Homeserver, relaying

BOT: Final = "@b_1:example.org"
GENERIC: Final = {"kind": "generic"}
DEAD: Final = "select kind, payload from appservice_bridge.dead_letter order by buried_at"
TO_DEVICE: Final = ("to_device", "de.sorunome.msc2409.to_device")
LISTS: Final = ("device_lists", "org.matrix.msc3202.device_lists")
COUNTS: Final = (
    "device_one_time_keys_count",
    "org.matrix.msc3202.device_one_time_keys_count",
    "org.matrix.msc3202.device_one_time_key_counts",
)
TYPES: Final = (
    "device_unused_fallback_key_types",
    "org.matrix.msc3202.device_unused_fallback_key_types",
)


def message(n: int, **changes: Any) -> dict[str, Any]:
    return {
        "to_user_id": BOT,
        "to_device_id": "DEV",
        "type": "m.test",
        "sender": "@alice:example.org",
        "content": {"n": n},
    } | changes


def body(**fields: Any) -> bytes:
    return json.dumps({"events": []} | fields).encode()


def numbers(bot: Appservice) -> list[int]:
    return [item["content"]["n"] for item in bot.to_device]


def latest(bot: Appservice, name: str) -> Any:
    told: dict[str, Any] = {}
    for request in bot.taken:
        for user_id, devices in json.loads(request.body).get(name, {}).items():
            told.setdefault(user_id, {}).update(devices)
    return told


@asynccontextmanager
async def one_bot(
    directory: Path, database: str, **changes: Any
) -> AsyncIterator[tuple[Appservice, Homeserver]]:
    async with appservice() as bot:
        bots = [registration("bot", bot.url, users=["@b_.*"]) | changes]
        async with relaying(directory, database, bots, homeserver=GENERIC) as hs:
            yield bot, hs


@pytest.mark.parametrize("names", [TO_DEVICE[:1], TO_DEVICE[1:], TO_DEVICE, TO_DEVICE[::-1]])
async def test_to_device_messages_are_taken_once_under_either_name_or_both(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path, names: tuple[str, ...]
) -> None:
    async with one_bot(tmp_path, database) as (bot, hs):
        both = [message(1), message(2), message(1)]  # the same again is another message
        assert await hs.push("1", body(**dict.fromkeys(names, both))) == 200
        assert await hs.push("2", body(**{key: [message(1)] for key in names})) == 200
        await bot.until(lambda: len(bot.to_device) >= 4)
        assert await hs.push("3", body(**{key: [message(9)] for key in names})) == 200
        await bot.until(lambda: 9 in numbers(bot))
    assert numbers(bot) == [1, 2, 1, 1, 9]
    told = "select outcome from appservice_bridge.ledger where kind = 'to_device' order by 1"
    assert [row["outcome"] for row in await pg.fetch(told)] == ["delivered", "routed"]


async def test_what_only_one_of_both_names_holds_is_not_lost(database: str, tmp_path: Path) -> None:
    async with one_bot(tmp_path, database) as (bot, hs):
        fields = {TO_DEVICE[0]: [message(1), message(2)], TO_DEVICE[1]: [message(2), message(3)]}
        await hs.push("1", body(**fields))
        await bot.until(lambda: len(bot.to_device) >= 3)
    assert sorted(numbers(bot)) == [1, 2, 3]


async def test_a_room_key_goes_before_the_event_of_the_same_transaction(
    database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        bots = [registration("bot", bot.url, users=["@b_.*"])]
        one = {"delivery": {"max_items": 1}, "homeserver": GENERIC}
        async with relaying(tmp_path, database, bots, **one) as hs:
            fields = {"events": [{"event_id": "$1"}], "to_device": [message(1)]}
            await hs.push("1", json.dumps(fields).encode())
            await bot.until(lambda: len(bot.taken) == 2)
    assert [bool(request.items(TO_DEVICE[1])) for request in bot.taken] == [True, False]


async def test_a_transaction_that_comes_again_with_other_counts_brings_its_messages_once(
    database: str, tmp_path: Path
) -> None:
    """So does a homeserver that counts anew for every try."""
    async with one_bot(tmp_path, database) as (bot, hs):
        for count in (5, 4, 3):
            counts = {BOT: {"DEV": {"signed_curve25519": count}}}
            fields = {"to_device": [message(1), message(1)], COUNTS[0]: counts}
            assert await hs.push("1", body(**fields)) == 200
        await hs.push("2", body(to_device=[message(2)]))
        await bot.until(
            lambda: (
                2 in numbers(bot) and latest(bot, COUNTS[1])[BOT]["DEV"] == {"signed_curve25519": 3}
            )
        )
    assert numbers(bot) == [1, 1, 2]


async def test_a_transaction_that_comes_again_written_otherwise_brings_its_messages_once(
    database: str, tmp_path: Path
) -> None:
    """Keys in another order, other spaces, other escapes, one message more, another name."""
    messages = [message(n, content={"n": n, "key": "ü", "more": [1, 2]}) for n in (1, 1, 2)]
    turned = [dict(reversed(one.items())) for one in messages]
    others: list[bytes] = [
        body(**{TO_DEVICE[0]: messages}),
        json.dumps({TO_DEVICE[0]: turned, "events": []}, indent=3).encode(),
        json.dumps({TO_DEVICE[1]: turned}, ensure_ascii=False).encode(),
        body(**{TO_DEVICE[0]: turned, TO_DEVICE[1]: messages}),
        body(**{TO_DEVICE[0]: [message(3), *turned]}),
    ]
    async with one_bot(tmp_path, database) as (bot, hs):
        for one in others:
            assert await hs.push("1", one) == 200
        await hs.push("2", body(to_device=[message(9)]))
        await bot.until(lambda: 9 in numbers(bot))
    assert numbers(bot) == [1, 1, 2, 3, 9]


async def test_two_transactions_that_say_the_same_are_two(database: str, tmp_path: Path) -> None:
    async with one_bot(tmp_path, database) as (bot, hs):
        for txn_id in ("1", "2", "1", "3"):
            assert await hs.push(txn_id, body(to_device=[message(7)])) == 200
        await hs.push("4", body(to_device=[message(9)]))
        await bot.until(lambda: 9 in numbers(bot))
    assert numbers(bot) == [7, 7, 7, 9]


async def test_what_is_malformed_is_buried_once_however_often_its_transaction_comes(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    bad = {
        "to_device": [message(1, content=[]), message(2, to_user_id="nobody"), 5, 5],
        LISTS[0]: {"changed": [1]},
        COUNTS[0]: {BOT: {"DEV": []}},
        "events": [{"event_id": 5}],
        "ephemeral": "none",
    }
    async with one_bot(tmp_path, database) as (bot, hs):
        for n in range(3):
            assert await hs.push("1", body(**bad, n=n)) == 200
        assert await hs.push("2", body(to_device=[5, message(9)])) == 200
        await bot.until(lambda: 9 in numbers(bot))
    buried = [row["kind"] for row in await pg.fetch(DEAD)]
    kinds = ["device_keys", "device_list", "ephemeral", "event", *["to_device"] * 5]
    assert sorted(buried) == kinds
    told = "select sum(items) from appservice_bridge.ledger where outcome = 'repeated'"
    assert await pg.fetchval(told) == 2 * 8


@pytest.mark.parametrize(
    ("lists", "counts", "types"),
    [
        *((lists, COUNTS[0], types) for lists, types in zip(LISTS, TYPES, strict=True)),
        *((LISTS[0], counts, TYPES[0]) for counts in COUNTS[1:]),
    ],
)
async def test_lists_counts_and_types_are_taken_under_every_name(
    database: str, tmp_path: Path, lists: str, counts: str, types: str
) -> None:
    fields = {
        lists: {"changed": ["@c:remote", "@d:remote"], "left": ["@d:remote", "@e:remote"]},
        counts: {BOT: {"DEV": {"signed_curve25519": 7}, "TWO": {}}},
        types: {BOT: {"DEV": []}},
    }
    async with one_bot(tmp_path, database) as (bot, hs):
        await hs.push("1", body(**fields))
        await bot.until(lambda: latest(bot, TYPES[1]) != {} and latest(bot, COUNTS[1]) != {})
    told = json.loads(bot.taken[0].body)[LISTS[1]]
    assert {change: sorted(users) for change, users in told.items()} == {
        "changed": ["@c:remote", "@d:remote"],
        "left": ["@e:remote"],
    }
    assert latest(bot, COUNTS[1]) == {
        BOT: {"DEV": {"signed_curve25519": 7}, "TWO": {"signed_curve25519": 0}}
    }
    assert latest(bot, TYPES[1]) == {BOT: {"DEV": []}}


async def test_malformed_members_are_buried_and_their_neighbours_go_on(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    bad_messages: list[Any] = [
        1,
        "text",
        [],
        {},
        message(0, content=[]),
        message(0, content=None),
        message(0, to_user_id="nobody"),
        message(0, to_user_id="@b_\0:example.org"),
        message(0, to_device_id=5),
        message(0, to_device_id="\0"),
        message(0, to_device_id="\ud800"),
        message(0, type=None),
        message(0, sender=[]),
    ]
    messages = [one for n, bad in enumerate(bad_messages, 1) for one in (bad, message(n))]
    fields = {
        TO_DEVICE[0]: messages,
        LISTS[0]: {"changed": [1, "@c:remote", "@\0:remote", None], "left": {"a": 1}},
        COUNTS[0]: {
            BOT: {"A": {"x": -1}, "B": {"x": 1.5}, "C": [], "D": {"x": 2}, "E": {"\ud800": 1}},
            "@b_2:example.org": 5,
            "nobody": {"DEV": {}},
        },
        TYPES[0]: {BOT: {"A": {}, "B": ["x", 1], "D": ["x"], "E": ["\udc00"]}},
    }
    async with one_bot(tmp_path, database) as (bot, hs):
        assert await hs.push("1", body(**fields)) == 200
        await bot.until(lambda: len(numbers(bot)) == len(bad_messages))
        assert await hs.push("2", body(events=[{"event_id": "$end"}])) == 200
        await bot.until(lambda: len(bot.events) == 1)
    assert numbers(bot) == list(range(1, len(bad_messages) + 1))
    assert json.loads(bot.taken[0].body)[LISTS[1]] == {"changed": ["@c:remote"], "left": []}
    assert latest(bot, COUNTS[1]) == {BOT: {"D": {"x": 2, "signed_curve25519": 0}}}
    assert latest(bot, TYPES[1]) == {BOT: {"D": ["x"]}}
    buried = [row["kind"] for row in await pg.fetch(DEAD)]
    assert buried.count("to_device") == len(bad_messages)
    assert buried.count("device_list") == 4
    assert buried.count("device_keys") == 9


@pytest.mark.parametrize("value", [None, 5, "text", [1], {"changed": 7}, {"a": 1}])
async def test_a_field_of_the_wrong_type_costs_no_event(
    database: str, tmp_path: Path, value: Any
) -> None:
    fields = dict.fromkeys((*TO_DEVICE, *LISTS, *COUNTS, *TYPES), value)
    async with one_bot(tmp_path, database) as (bot, hs):
        assert await hs.push("1", body(events=[{"event_id": "$1"}], **fields)) == 200
        await bot.until(lambda: len(bot.events) == 1)
    assert bot.to_device == []


async def test_what_is_another_users_is_dropped_and_counted(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    fields = {
        "to_device": [message(1, to_user_id="@carol:example.org"), message(2)],
        COUNTS[0]: {"@carol:example.org": {"DEV": {"x": 1}}},
    }
    async with one_bot(tmp_path, database) as (bot, hs):
        await hs.push("1", body(**fields))
        await bot.until(lambda: len(bot.to_device) == 1)
    assert numbers(bot) == [2]
    rows = await pg.fetch("select kind from appservice_bridge.ledger where outcome = 'foreign'")
    assert sorted(row["kind"] for row in rows) == ["device_keys", "to_device"]


async def test_an_appservice_that_wants_no_encryption_gets_nothing_of_it(
    database: str, tmp_path: Path
) -> None:
    fields = {
        "to_device": [message(1)],
        LISTS[0]: {"changed": ["@c:remote"]},
        COUNTS[0]: {BOT: {"DEV": {"x": 1}}},
        "events": [{"event_id": "$1"}],
    }
    off = {"org.matrix.msc3202": False}
    async with one_bot(tmp_path, database, **off) as (bot, hs):
        await hs.push("1", json.dumps(fields).encode())
        await bot.until(lambda: len(bot.events) == 1)
    assert [list(json.loads(request.body)) for request in bot.taken] == [["events"]]
