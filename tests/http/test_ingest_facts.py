"""A bad fact costs its batch that fact: it is refused with a verdict, and its neighbours go on."""

import json
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest
from unpaddedbase64 import encode_base64

from appservice_bridge.domain.raw_json import MAX_DEPTH
from tests.support.bridge import SERVER
from tests.support.ingesting import KEY, KEY_ID, batch_of, message, now_ms, one_bot, signed

STORED: Final = (
    "select count(*) from appservice_bridge.capture_log where position($1::bytea in body) > 0"
)
EVERYWHERE: Final = ("capture_log", "outbox", "dead_letter", "sealed", "ingest_batch")


def filled(size: int, letter: str = "x") -> dict[str, str]:
    """A content of so many bytes of canonical JSON."""
    room = size - len('{"body":""}')
    wide = len(letter.encode())
    return {"body": letter * (room // wide) + "x" * (room % wide)}


async def test_case_9_65536_bytes_are_accepted_and_65537_refused_and_nowhere_stored(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (bot, hs):
        async with pg.transaction():
            await pg.execute("select from appservice_bridge.intake_gate for update")
            taken = await hs.send(
                "1",
                message(1, content=filled(65_536)),
                message(2, content=filled(65_537, "y")),
                message(3, content=filled(65_536, "é")),
                message(4, content=filled(65_537, "ü")),  # fewer characters, but not fewer bytes
                message(5),
            )
            too_large = "M_TOO_LARGE"
            expected = ["accepted", too_large, "accepted", too_large, "accepted"]
            assert taken.verdicts == expected
            for table in EVERYWHERE:
                rows = await pg.fetch(f"select t::text as row from appservice_bridge.{table} t")
                for letters in (b"yyyy", "üüüü".encode()):
                    assert not any(letters.hex() in row["row"] for row in rows), table
            assert await pg.fetchval(STORED, b"xxxx") == 1
        await bot.until(lambda: len(bot.to_device) == 3)
    assert [item["content"] for item in bot.to_device] == [
        filled(65_536),
        filled(65_536, "é"),
        {"n": 5},
    ]


async def test_case_9_what_counts_is_the_canonical_form_and_not_how_it_was_written(
    database: str, tmp_path: Path
) -> None:
    content = filled(65_536, "é")
    batch = signed(batch_of("1", message(content=content)))
    spaced = json.dumps(batch, indent=8, ensure_ascii=True).encode()
    assert len(spaced) > 2 * 65_536
    async with one_bot(tmp_path, database) as (bot, hs):
        assert (await hs.put("1", spaced)).verdicts == ["accepted"]
        await bot.until(lambda: len(bot.to_device) == 1)
    assert bot.to_device[0]["content"] == content


async def test_case_10_what_canonical_json_cannot_hold_costs_that_item_alone(
    database: str, tmp_path: Path
) -> None:
    bad: list[Any] = [float("nan"), float("inf"), -float("inf"), 1.5, 1.0, 2**53, -(2**53), 1e300]
    facts = [message(0)]
    for n, value in enumerate(bad, start=1):
        facts += [message(content={"deep": [{"in": value}]}), message(n)]
    async with one_bot(tmp_path, database) as (bot, hs):
        taken = await hs.send("1", *facts)
        assert taken.verdicts == ["accepted", *["M_BAD_JSON", "accepted"] * len(bad)]
        await bot.until(lambda: len(bot.to_device) == len(bad) + 1)
    assert [item["content"]["n"] for item in bot.to_device] == list(range(len(bad) + 1))


async def test_case_10_the_largest_integers_pass_byte_exact(database: str, tmp_path: Path) -> None:
    content = {"most": 2**53 - 1, "least": -(2**53) + 1, "zero": 0}
    async with one_bot(tmp_path, database) as (bot, hs):
        assert (await hs.send("1", message(content=content))).verdicts == ["accepted"]
        await bot.until(lambda: len(bot.to_device) == 1)
    exact = b'"content":{"least":-9007199254740991,"most":9007199254740991,"zero":0}'
    assert exact in bot.taken[0].body


async def test_case_10_a_number_of_five_thousand_digits_costs_that_item_alone(
    database: str, tmp_path: Path
) -> None:
    """Python's reader takes none so long; the fact is signed as it is written."""
    digits = "7" * 5000
    written = json.dumps(message(1), separators=(",", ":"), sort_keys=True)
    bad = written.replace('"n":1', f'"n":{digits}')
    batch = f'"batch_id":"1","facts":[{bad},{written}],"origin":"{SERVER}"'
    to_sign = f'{{{batch},"origin_server_ts":{now_ms()}}}'
    signature = encode_base64(KEY.sign(to_sign.encode()).signature)
    signatures = json.dumps({SERVER: {KEY_ID: signature}})
    async with one_bot(tmp_path, database) as (bot, hs):
        body = f'{to_sign[:-1]},"signatures":{signatures}}}'.encode()
        assert (await hs.put("1", body)).verdicts == ["M_BAD_JSON", "accepted"]
        await bot.until(lambda: len(bot.to_device) == 1)


async def test_case_10_a_content_that_is_no_object_costs_that_item_alone(
    database: str, tmp_path: Path
) -> None:
    bad: list[Any] = [[], [{}], "text", None, True, 1]
    facts = [one for n, value in enumerate(bad) for one in (message(content=value), message(n))]
    without = message()
    del without["content"]
    async with one_bot(tmp_path, database) as (bot, hs):
        taken = await hs.send("1", *facts, without, message(len(bad)))
        assert taken.verdicts == ["M_BAD_JSON", "accepted"] * (len(bad) + 1)
        await bot.until(lambda: len(bot.to_device) == len(bad) + 1)


async def test_case_11_a_lone_surrogate_and_u_0000_are_refused_and_signed_all_the_same(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    bad = [
        message(content={"body": "\ud800"}),
        message(content={"\udfff": 1}),
        message(content={"body": "a\0b"}),
        message(content={"\0": [1]}),
        message(to_device_id="\0"),
        message(to_user_id="@b_\ud800:example.org"),
        message(type="m.\0"),
        {"kind": "device_list", "appservice_id": "bot\0", "changed": []},
        message(content={"pair": "🔑 is written as two surrogates"}),
    ]
    async with one_bot(tmp_path, database) as (bot, hs):
        taken = await hs.send("1", *bad, message(2))
        assert taken.verdicts == [*["M_BAD_JSON"] * (len(bad) - 1), "accepted", "accepted"]
        await bot.until(lambda: len(bot.to_device) == 2)
    assert bot.to_device[0]["content"]["pair"].startswith("🔑")
    assert await pg.fetchval("select count(*) from appservice_bridge.dead_letter") == 0


async def test_case_11_unknown_keys_and_a_forged_recipient_stay_inside_the_content(
    database: str, tmp_path: Path
) -> None:
    content = {
        "to_user_id": "@victim:example.org",
        "to_device_id": "OTHER",
        "org.example.unknown": {"a": [None, True, {"content": {}}]},
        "x": '"},"to_user_id":"@victim:example.org',
    }
    async with one_bot(tmp_path, database) as (bot, hs):
        await hs.send("1", message(content=content, device_id="OTHER", more=1))
        await bot.until(lambda: len(bot.to_device) == 1)
    (item,) = bot.to_device
    assert item.pop("content") == content
    assert set(item) == {"to_user_id", "to_device_id", "type", "sender"}
    assert (item["to_user_id"], item["to_device_id"]) == ("@b_1:example.org", "DEV")


async def test_control_characters_in_ids_arrive_as_json(database: str, tmp_path: Path) -> None:
    """Ids of old users may hold them, and device ids are the homeserver's own matter."""
    device_id = 'a"\\\n\x01\x7f\u2028é'
    fact = message(to_user_id="@b_\n\x1f:example.org", to_device_id=device_id, type="m\t")
    async with one_bot(tmp_path, database) as (bot, hs):
        assert (await hs.send("1", fact)).verdicts == ["accepted"]
        await bot.until(lambda: len(bot.to_device) == 1)
    del fact["kind"]
    assert bot.to_device == [fact]


async def test_what_nests_too_deeply_costs_that_item_alone(database: str, tmp_path: Path) -> None:
    def nested(depth: int) -> str:
        inner = "[" * (depth - 2) + "]" * (depth - 2)
        return json.dumps(message(1)).replace('{"n": 1}', f'{{"n":{inner}}}')

    compact = {"separators": (",", ":"), "sort_keys": True}
    facts = [
        json.dumps(json.loads(nested(MAX_DEPTH)), **compact),  # type: ignore[arg-type]
        nested(MAX_DEPTH + 1),
        nested(30_000),
        json.dumps(message(2), **compact),  # type: ignore[arg-type]
    ]
    batch = f'"batch_id":"1","facts":[{",".join(facts)}],"origin":"{SERVER}"'
    to_sign = f'{{{batch},"origin_server_ts":{now_ms()}}}'
    signature = encode_base64(KEY.sign(to_sign.encode()).signature)
    signatures = json.dumps({SERVER: {KEY_ID: signature}})
    async with one_bot(tmp_path, database) as (bot, hs):
        taken = await hs.put("1", f'{to_sign[:-1]},"signatures":{signatures}}}'.encode())
        assert taken.verdicts == ["accepted", "M_BAD_JSON", "M_BAD_JSON", "accepted"]
        await bot.until(lambda: len(bot.to_device) == 2)


@pytest.mark.parametrize("users", [50_001, 10_001])
async def test_no_batch_becomes_more_rows_than_may_be_written_at_once(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path, users: int
) -> None:
    everybody = [f"@u{n}:example.org" for n in range(users)]
    lists = [
        {"kind": "device_list", "appservice_id": "bot", "changed": everybody[at : at + 10_000]}
        for at in range(0, users, 10_000)
    ]
    if users < 50_000:
        lists = [{**lists[0], "changed": everybody}]
    async with one_bot(tmp_path, database) as (_, hs):
        taken = await hs.send("1", *lists)
    assert taken.verdicts == ["accepted"] * (len(lists) - 1) + ["M_TOO_LARGE"]
