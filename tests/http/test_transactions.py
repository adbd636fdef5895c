"""What the homeserver pushes is stored before it is answered, and reaches the appservice once."""

import asyncio
import json
from pathlib import Path
from typing import Final
from urllib.parse import quote

import asyncpg

from tests.support.appservice import appservice
from tests.support.bridge import registration, worker, write_files
from tests.support.relaying import TRANSACTIONS, homeserver, one_bot, relaying

CAPTURED: Final = "select count(*) from appservice_bridge.capture_log"
DEAD: Final = "select count(*) from appservice_bridge.dead_letter"


def body_of(*event_ids: str, typing: str | None = None) -> bytes:
    body: dict[str, object] = {"events": [{"event_id": one, "type": "m"} for one in event_ids]}
    if typing is not None:
        body["ephemeral"] = [{"type": "m.typing", "room_id": typing}]
    return json.dumps(body).encode()


async def counted(pg: "asyncpg.Connection[asyncpg.Record]", kind: str, outcome: str) -> int:
    found = await pg.fetchval(
        "select coalesce(sum(items), 0)::int from appservice_bridge.ledger"
        " where kind = $1 and outcome = $2",
        kind,
        outcome,
    )
    return int(found)


async def test_a_transaction_is_committed_before_it_is_answered(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (bot, hs):
        async with pg.transaction():
            await pg.execute("select from appservice_bridge.intake_gate for update")
            assert await hs.push("1", body_of("$1")) == 200
            assert await pg.fetchval(CAPTURED) == 1
        await bot.until(lambda: [event["event_id"] for event in bot.events] == ["$1"])


async def test_events_and_typing_arrive_in_the_order_they_were_pushed(
    database: str, tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (bot, hs):
        for number in range(30):
            body = body_of(f"${number}a", f"${number}b", typing=f"!{number}")
            assert await hs.push(str(number), body) == 200
        await bot.until(lambda: len(bot.events) == 60)
    expected = [f"${number}{letter}" for number in range(30) for letter in "ab"]
    assert [event["event_id"] for event in bot.events] == expected
    assert [one["room_id"] for one in bot.items("ephemeral")] == [f"!{n}" for n in range(30)]
    assert bot.items("ephemeral") == bot.items("de.sorunome.msc2409.ephemeral")


async def test_case_12_the_same_id_and_bytes_again_are_delivered_once(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    body = body_of("$1", typing="!1")
    async with appservice() as bot:
        async with relaying(tmp_path, database, [registration("bot", bot.url)]) as hs:
            together = await asyncio.gather(*(hs.push("1", body) for _ in range(5)))
            assert [*together, await hs.push("1", body)] == [200] * 6
            assert await hs.push("2", body_of("$end")) == 200
            await bot.until(lambda: len(bot.events) == 2)
        files = write_files(tmp_path / "again", database, [registration("bot", bot.url)])
        async with worker(files), homeserver(files) as hs:
            assert await hs.push("1", body) == 200
            assert await hs.push("3", body_of("$after")) == 200
            await bot.until(lambda: len(bot.events) == 3)
    assert [event["event_id"] for event in bot.events] == ["$1", "$end", "$after"]
    assert len(bot.items("ephemeral")) == 1
    assert await counted(pg, "transaction", "repeated") == 6


async def test_another_body_under_a_known_id_is_delivered(database: str, tmp_path: Path) -> None:
    async with one_bot(tmp_path, database) as (bot, hs):
        for event_id in ("$before", "$rewound"):
            assert await hs.push("7", body_of(event_id)) == 200
        await bot.until(lambda: len(bot.events) == 2)
    assert [event["event_id"] for event in bot.events] == ["$before", "$rewound"]


async def test_case_12_the_same_event_under_another_id_is_delivered_once_also_after_a_restart(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        async with relaying(tmp_path, database, [registration("bot", bot.url)]) as hs:
            assert await hs.push("1", body_of("$1", "$1", "$2")) == 200
            assert await hs.push("2", body_of("$2", "$3", "$1")) == 200
            await bot.until(lambda: len(bot.events) == 3)
        files = write_files(tmp_path / "again", database, [registration("bot", bot.url)])
        async with worker(files), homeserver(files) as hs:
            assert await hs.push("3", body_of("$3", "$4")) == 200
            await bot.until(lambda: len(bot.events) == 4)
    assert [event["event_id"] for event in bot.events] == ["$1", "$2", "$3", "$4"]
    assert await counted(pg, "event", "repeated") == 4


async def test_one_event_goes_to_every_appservice_it_was_pushed_for(
    database: str, tmp_path: Path
) -> None:
    async with appservice() as one, appservice() as two:
        both = [registration("one", one.url), registration("two", two.url)]
        async with relaying(tmp_path, database, both) as hs:
            for to in ("one", "two"):
                assert await hs.push("1", body_of("$1"), to=to, token=f"hs_{to}") == 200
            await one.until(lambda: len(one.events) == 1)
            await two.until(lambda: len(two.events) == 1)


async def test_native_encryption_fields_are_dropped_and_counted(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    counts = {"@b:example.org": {"DEV": {"signed_curve25519": 5}}}
    native: dict[str, dict[str, object]] = {
        "to_device": {"de.sorunome.msc2409.to_device": [{"type": "m.room_key", "content": {}}]},
        "device_lists": {"org.matrix.msc3202.device_lists": {"changed": ["@a:b"], "left": []}},
        "key_counts": {"org.matrix.msc3202.device_one_time_keys_count": counts},
        "fallback_types": {"org.matrix.msc3202.device_unused_fallback_key_types": counts},
    }
    fields: dict[str, object] = {"events": [{"event_id": "$1"}]}
    for one in native.values():
        fields |= one
    async with one_bot(tmp_path, database) as (bot, hs):
        assert await hs.push("1", json.dumps(fields).encode()) == 200
        await bot.until(lambda: len(bot.events) == 1)
    assert [list(json.loads(request.body)) for request in bot.taken] == [["events"]]
    assert {kind: await counted(pg, kind, "native_dropped") for kind in native} == dict.fromkeys(
        native, 1
    )
    assert await pg.fetchval(DEAD) == 0


async def test_for_an_appservice_without_a_url_200_is_answered_and_nothing_stored(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    async with relaying(tmp_path, database, [registration("bot", None)]) as hs:
        for number, body in enumerate((body_of("$1"), b"no json", b"")):
            assert await hs.push(str(number), body) == 200
        assert (await hs.ask("GET", "/_matrix/app/v1/users/x")).errcode == "M_NOT_FOUND"
        for table in ("capture_log", "relayed", "dead_letter", "outbox", "seen_event", "ledger"):
            assert await pg.fetchval(f"select count(*) from appservice_bridge.{table}") == 0


async def test_any_character_in_an_id_works_end_to_end(database: str, tmp_path: Path) -> None:
    ids = ["a/b", "100%", "a b", "a?b", "a#b", "a/../b", "...", "Ünï漢", "a:b", "%2F", "%252F"]
    ids += ["{x}", 'a"b\\c', "a+b&c=d;e@f", "a\nb\x7f", "//", "bot"]
    txn_ids = ("1", "a%2Fb", "%25", "a/b", "a%0Ab", "%23%3F%20", "%FF", "..")
    async with appservice() as bot:

        def found(token: str) -> list[str]:
            pushes = [one for one in bot.taken if one.token == token and one.method == "PUT"]
            return [event["event_id"] for push in pushes for event in push.items("events")]

        registrations = [registration(f"r{n}", bot.url) | {"id": ids[n]} for n in range(len(ids))]
        async with relaying(tmp_path, database, registrations) as hs:
            for number, appservice_id in enumerate(ids):
                to, token = quote(appservice_id, safe=""), f"hs_r{number}"
                for txn_id in txn_ids:
                    body = body_of(f"{appservice_id} {txn_id}")
                    assert await hs.push(txn_id, body, to=to, token=token) == 200, appservice_id
                assert await hs.push("1", b"", to=to, token="hs_r99") == 403, appservice_id
                path = "/_matrix/app/v1/users/%40x%2F..%2Fy"
                assert (await hs.ask("GET", path, to=to, token=token)).status == 200
                expected = [f"{appservice_id} {txn_id}" for txn_id in txn_ids]
                await bot.until(lambda: found(token) == expected)  # noqa: B023 - awaited here
                asked = [one for one in bot.requests if one.token == token and one.path == path]
                assert len(asked) == 1, appservice_id


async def test_a_transaction_cut_in_its_midst_leaves_nothing_and_is_taken_whole_later(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    body = body_of("$1")
    async with one_bot(tmp_path, database) as (bot, hs):
        _, writer = await asyncio.open_connection("127.0.0.1", int(hs.relay_url.rsplit(":", 1)[1]))
        head = f"PUT /appservice/bot{TRANSACTIONS}1 HTTP/1.1\r\nHost: relay\r\n"
        head += f"Authorization: Bearer hs_bot\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body[:-3])
        await writer.drain()
        writer.close()
        await asyncio.sleep(0.2)
        assert await pg.fetchval("select count(*) from appservice_bridge.relayed") == 0
        assert await hs.push("1", body) == 200
        await bot.until(lambda: len(bot.events) == 1)
    assert await pg.fetchval(DEAD) == 0
