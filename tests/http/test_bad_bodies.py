"""What cannot be delivered is buried and answered 200; everything beside it arrives unchanged."""

import json
from pathlib import Path
from typing import Final

import asyncpg

from appservice_bridge.domain.raw_json import MAX_DEPTH
from appservice_bridge.http.relay import MAX_BODY_BYTES
from tests.support.appservice import Appservice
from tests.support.relaying import TRANSACTIONS, one_bot

DEAD: Final = (
    "select kind, payload from appservice_bridge.dead_letter"
    " where appservice_id = 'bot' order by buried_at"
)
END: Final = b'{"events":[{"event_id":"$end"}]}'
UNREADABLE: Final = [
    b"",
    b" ",
    b"\xff\xfe",
    b'{"events":[{"event_id":"\xed\xa0\x80"}]}',  # a surrogate that was encoded by itself
    b"\xef\xbb\xbf{}",
    b"no json",
    b"null",
    b'"text"',
    b"1",
    b"[]",
    b'[{"event_id":"$1"}]',
    b'{"events":[{"event_id":"$1"}]',
    b'{"events":[{"event_id":"$1"}]}}',
    b'{"events":[{"event_id":"$1"},]}',
    b'{"events":[NaN]}',
    b'{"events":[{"event_id":"$1","n":Infinity}]}',
    b'{"events":[{"event_id":"a\nb"}]}',
    b"{'events':[]}",
    b"[" * 100_000,
    b'{"events":' + b"[" * 100_000,
]


async def ended(bot: Appservice) -> None:
    """All that was pushed before `END` has been dealt with."""
    await bot.until(lambda: {"event_id": "$end"} in bot.events)


def delivered(bot: Appservice) -> bytes:
    return b"\n".join(request.body for request in bot.taken)


async def test_an_unreadable_body_is_answered_200_and_becomes_one_dead_letter(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (bot, hs):
        for number, body in enumerate(UNREADABLE):
            assert await hs.push(str(number), body) == 200, body[:40]
        assert await hs.push("end", END) == 200
        await ended(bot)
    assert bot.events == [{"event_id": "$end"}]
    dead = await pg.fetch(DEAD)
    assert sorted(row["payload"] for row in dead) == sorted(UNREADABLE)
    assert {row["kind"] for row in dead} == {"transaction"}


async def test_a_body_that_cannot_be_decompressed_is_answered_200_and_becomes_one_dead_letter(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (bot, hs):
        for encoding in ("gzip", "deflate"):
            answer = await hs.ask(
                "PUT", TRANSACTIONS + encoding, body=b"xyz", headers={"Content-Encoding": encoding}
            )
            assert answer.status == 200
        assert await hs.push("end", END) == 200
        await ended(bot)
    assert [row["kind"] for row in await pg.fetch(DEAD)] == ["transaction"] * 2


async def test_case_10_a_member_that_is_no_object_is_buried_and_its_neighbours_arrive_unchanged(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    bads = ['"text"', "1.5", "null", "true", "[]", '[{"event_id":"$x"}]']
    typing = '{"type":"m.typing","content":{ }}'
    async with one_bot(tmp_path, database) as (bot, hs):
        for number, bad in enumerate(bads):
            first = f'{{ "event_id" : "${number}", "n":1.10 ,"big":1e400}}'
            second = f'{{"event_id":"${number}b","again":1,"again":2}}'
            body = f'{{"events":[{first}, {bad} ,{second}],"ephemeral":[{bad},{typing}]}}'
            assert await hs.push(str(number), body.encode()) == 200
            await bot.until(lambda: len(bot.items("ephemeral")) == number + 1)  # noqa: B023
            assert f'"events":[{first},{second}]'.encode() in bot.taken[-1].body
            assert f'"ephemeral":[{typing}]'.encode() in bot.taken[-1].body
    dead = [(row["kind"], row["payload"].decode()) for row in await pg.fetch(DEAD)]
    assert sorted(dead) == sorted((kind, bad) for kind in ("ephemeral", "event") for bad in bads)


async def test_an_event_whose_id_is_no_string_is_buried(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    bads = [f'{{"event_id":{event_id}}}' for event_id in ("1", "null", '["$1"]', "{}")]
    async with one_bot(tmp_path, database) as (bot, hs):
        for number, bad in enumerate(bads):
            assert await hs.push(str(number), f'{{"events":[{bad}]}}'.encode()) == 200
        assert await hs.push("end", END) == 200
        await ended(bot)
    assert bot.events == [{"event_id": "$end"}]
    assert sorted(row["payload"].decode() for row in await pg.fetch(DEAD)) == sorted(bads)


async def test_an_array_that_is_none_is_buried_and_the_other_arrives(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    values = ["{}", '"text"', "null", "7"]
    async with one_bot(tmp_path, database) as (bot, hs):
        for number, value in enumerate(values):
            body = f'{{"ephemeral":{value},"events":[{{"event_id":"${number}"}}]}}'
            assert await hs.push(f"{number}a", body.encode()) == 200
            body = f'{{"events":{value},"ephemeral":[{{"type":"m.typing","n":{number}}}]}}'
            assert await hs.push(f"{number}b", body.encode()) == 200
        assert await hs.push("end", END) == 200
        await ended(bot)
    assert [event["event_id"] for event in bot.events] == ["$0", "$1", "$2", "$3", "$end"]
    assert [typing["n"] for typing in bot.items("ephemeral")] == [0, 1, 2, 3]
    dead = [(row["kind"], row["payload"].decode()) for row in await pg.fetch(DEAD)]
    assert sorted(dead) == sorted((kind, one) for kind in ("ephemeral", "event") for one in values)


async def test_case_11_u_0000_and_lone_surrogates_pass_byte_for_byte(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    events = [
        r'{"event_id":"$nul\u0000","content":{"body":"\u0000"}}',
        r'{"event_id":"$low\udc00","content":{"body":"\ud800 \udfff\ud800"}}',
        r'{"event_id":"$high\ud800","sender":"@\u0000\ud800:example.org"}',
        r'{"event_id":"$key","\u0000\ud800":1}',
        '{"event_id":"$raw","content":{"body":"🔑 \u2028 \x7f"}}',
    ]
    async with one_bot(tmp_path, database) as (bot, hs):
        body = f'{{"events":[{",".join(events)}],"ephemeral":[{events[1]}]}}'
        for txn_id in ("1", "2"):
            assert await hs.push(txn_id, body.encode()) == 200
        await bot.until(lambda: len(bot.items("ephemeral")) == 2)
    assert f'"events":[{",".join(events)}]'.encode() in delivered(bot)
    assert len(bot.events) == len(events)
    assert await pg.fetch(DEAD) == []


async def test_case_11_a_forged_field_inside_an_event_stays_inside_of_it(
    database: str, tmp_path: Path
) -> None:
    event = {
        "event_id": "$1",
        "to_device": [{"type": "m.room_key"}],
        "events": [{"event_id": "$2"}],
        "content": {"to_user_id": "@someone:else", "x": '"],"events":[{"event_id":"$3"}]'},
    }
    async with one_bot(tmp_path, database) as (bot, hs):
        assert await hs.push("1", json.dumps({"events": [event]}).encode()) == 200
        await bot.until(lambda: len(bot.events) == 1)
    assert bot.events == [event]
    assert list(json.loads(bot.taken[0].body)) == ["events"]


async def test_an_event_that_nests_too_deeply_is_buried_and_its_neighbours_arrive(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    def nested(event_id: str, depth: int) -> str:
        inner = depth - 1
        return f'{{"event_id":"{event_id}","content":{"[" * inner}{"]" * inner}}}'

    fit, unfit = nested("$deep", MAX_DEPTH), nested("$deeper", MAX_DEPTH + 1)
    deepest = nested("$deepest", 30_000)
    events = f'{{"event_id":"$1"}},{fit},{unfit},{deepest},{{"event_id":"$2"}}'
    async with one_bot(tmp_path, database) as (bot, hs):
        body = f'{{"events":[{events}],"ephemeral":[{deepest},{{"type":"m.typing"}}]}}'
        assert await hs.push("1", body.encode()) == 200
        assert await hs.push("end", END) == 200
        await ended(bot)
    expected = f'"events":[{{"event_id":"$1"}},{fit},{{"event_id":"$2"}}'
    assert expected.encode() in delivered(bot)
    assert bot.items("ephemeral") == [{"type": "m.typing"}]
    dead = [(row["kind"], row["payload"].decode()) for row in await pg.fetch(DEAD)]
    assert sorted(dead) == [("ephemeral", deepest), ("event", unfit), ("event", deepest)]


async def test_a_body_of_64_mib_is_stored_and_a_larger_one_is_one_dead_letter(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    large = b'{"events":[]' + b" " * (64 * 1024 * 1024 - 13) + b"}"
    assert len(large) == MAX_BODY_BYTES
    async with one_bot(tmp_path, database) as (bot, hs):
        assert await hs.push("larger", large + b" ") == 200
        async with pg.transaction():
            await pg.execute("select from appservice_bridge.intake_gate for update")
            assert await hs.push("large", large) == 200
            stored = "select octet_length(body) from appservice_bridge.capture_log"
            assert await pg.fetchval(stored) == MAX_BODY_BYTES
            await pg.execute("delete from appservice_bridge.capture_log")  # it is proved, and slow
        assert await hs.push("end", END) == 200
        await ended(bot)
    assert [tuple(row) for row in await pg.fetch(DEAD)] == [("transaction", None)]


async def test_an_event_larger_than_a_transaction_may_be_is_delivered_by_itself(
    database: str, tmp_path: Path
) -> None:
    large = '{"event_id":"$large","body":"' + "x" * 60_000 + '"}'
    body = f'{{"events":[{{"event_id":"$1"}},{large},{{"event_id":"$2"}}]}}'
    small = {"max_body_bytes": 20_000}
    async with one_bot(tmp_path, database, delivery=small) as (bot, hs):
        assert await hs.push("1", body.encode()) == 200
        await bot.until(lambda: len(bot.events) == 3)
    assert [request.body for request in bot.taken] == [
        b'{"events":[{"event_id":"$1"}]}',
        f'{{"events":[{large}]}}'.encode(),
        b'{"events":[{"event_id":"$2"}]}',
    ]


async def test_case_9_a_content_over_65536_canonical_bytes_is_buried_and_its_neighbours_arrive(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    fits = "ü" * ((65_536 - len('{"b":""}')) // 2)
    contents = {
        "$fits": f'{{"b":"{fits}"}}',
        "$spaced": f'{{ "b" : "{fits}" }}',  # canonical JSON has no spaces
        "$over": f'{{"b":"{fits}u"}}',  # by one byte, and far below in characters
    }
    events = ",".join(
        f'{{"event_id":"{event_id}","content":{content}}}' for event_id, content in contents.items()
    )
    async with one_bot(tmp_path, database) as (bot, hs):
        assert await hs.push("1", f'{{"events":[{events}]}}'.encode()) == 200
        assert await hs.push("end", END) == 200
        await ended(bot)
    assert [event["event_id"] for event in bot.events] == ["$fits", "$spaced", "$end"]
    assert contents["$spaced"].encode() in delivered(bot)
    [(kind, payload)] = [tuple(row) for row in await pg.fetch(DEAD)]
    assert (kind, json.loads(payload)["event_id"]) == ("event", "$over")
