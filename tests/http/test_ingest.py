"""A batch of facts is taken from the homeserver and from nobody else, and reaches appservices."""

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest
from signedjson.key import generate_signing_key

from appservice_bridge.http.batch import MAX_FACTS
from appservice_bridge.http.relay import MAX_BODY_BYTES
from tests.support.appservice import Appservice, appservice
from tests.support.bridge import registration, worker
from tests.support.ingesting import (
    BOT,
    KEY,
    batch_of,
    ingest_files,
    message,
    one_bot,
    sender,
    signed,
)
from tests.support.watching import looked

__all__ = ["looked"]

TYPING: Final = {"type": "m.typing", "room_id": "!r:example.org", "content": {"user_ids": []}}
CAPTURED: Final = "select count(*) from appservice_bridge.capture_log"
BATCHES: Final = "select count(*) from appservice_bridge.ingest_batch"


def put_together(bot: Appservice, name: str) -> dict[str, Any]:
    """The latest that was told of each user or device."""
    told: dict[str, Any] = {}
    for request in bot.taken:
        for user_id, devices in json.loads(request.body).get(name, {}).items():
            told.setdefault(user_id, {}).update(devices)
    return told


def listed(bot: Appservice, name: str) -> list[str]:
    lists = (
        json.loads(request.body).get("org.matrix.msc3202.device_lists") for request in bot.taken
    )
    return sorted(user_id for one in lists if one for user_id in one.get(name, []))


async def test_messages_arrive_flat_and_in_the_order_of_their_batches(
    database: str, tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (bot, hs):
        for n in range(0, 30, 3):
            taken = await hs.send(f"batch {n}/ü", *(message(n + i) for i in range(3)))
            assert taken.results == [{"status": "accepted"}] * 3
        await bot.until(lambda: len(bot.to_device) == 30)
    assert [item["content"]["n"] for item in bot.to_device] == list(range(30))
    assert bot.to_device[0] == {
        "to_user_id": BOT,
        "to_device_id": "DEV",
        "type": "m.test",
        "sender": "@alice:example.org",
        "content": {"n": 0},
    }


async def test_a_batch_is_committed_before_it_is_answered(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (bot, hs):
        async with pg.transaction():
            await pg.execute("select from appservice_bridge.intake_gate for update")
            await hs.send("1", message())
            assert (await pg.fetchval(CAPTURED), await pg.fetchval(BATCHES)) == (1, 1)
        await bot.until(lambda: len(bot.to_device) == 1)


async def test_room_events_and_ephemeral_events_arrive_in_order_and_room_events_once(
    database: str, tmp_path: Path
) -> None:
    def event(event_id: str) -> dict[str, Any]:
        event = {"event_id": event_id, "type": "m.room.message", "content": {"body": "é\u2028"}}
        return {"kind": "room_event", "appservice_id": "bot", "event": event}

    ephemeral = {"kind": "ephemeral", "appservice_id": "bot", "event": TYPING}
    async with one_bot(tmp_path, database) as (bot, hs):
        await hs.send("1", event("$1"), ephemeral, event("$2"))
        await hs.send("2", event("$2"), event("$3"))
        await bot.until(lambda: len(bot.events) == 3)
    assert bot.events == [event(event_id)["event"] for event_id in ("$1", "$2", "$3")]
    assert bot.items("ephemeral") == [TYPING]


async def test_device_lists_and_key_counts_arrive_and_the_latest_wins(
    database: str, tmp_path: Path
) -> None:
    device = {"user_id": BOT, "device_id": "DEV"}
    lists = {"kind": "device_list", "appservice_id": "bot"}
    counts = {"kind": "one_time_key_counts", **device}
    types = {"kind": "unused_fallback_key_types", **device}
    async with one_bot(tmp_path, database) as (bot, hs):
        taken = await hs.send(
            "1",
            {**lists, "changed": ["@c:example.org", "@d:remote"], "left": ["@e:remote"]},
            {**counts, "counts": {"signed_curve25519": 50}},
            {**counts, "counts": {}},
            {**types, "types": ["signed_curve25519"]},
            {**lists, "left": ["@c:example.org", "@d:remote"], "changed": ["@d:remote"]},
        )
        assert taken.verdicts == ["accepted"] * 5
        await bot.until(lambda: listed(bot, "left") != [])
    assert listed(bot, "changed") == ["@d:remote"]
    assert listed(bot, "left") == ["@c:example.org", "@e:remote"]
    one_time = put_together(bot, "org.matrix.msc3202.device_one_time_keys_count")
    assert one_time == {BOT: {"DEV": {"signed_curve25519": 0}}}
    fallback = put_together(bot, "org.matrix.msc3202.device_unused_fallback_key_types")
    assert fallback == {BOT: {"DEV": ["signed_curve25519"]}}


async def test_a_deleted_device_gets_nothing_that_came_before_and_all_that_comes_after(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    deleted = {"kind": "device_deleted", "user_id": BOT, "device_id": "DEV"}
    async with one_bot(tmp_path, database) as (bot, hs):
        await hs.send("1", message(1), message(2, to_device_id="OTHER"), deleted, message(3))
        await bot.until(lambda: len(bot.to_device) == 2)
    assert [item["content"]["n"] for item in bot.to_device] == [2, 3]


async def test_who_is_not_known_is_said_in_the_verdict(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        bots = [registration("bot", bot.url, users=["@b_.*"]), registration("silent", None)]
        files = ingest_files(tmp_path, database, bots)
        event = {"event_id": "$1", "type": "m", "content": {}}
        async with worker(files), sender(files.relay_url) as hs:
            taken = await hs.send(
                "1",
                message(1, to_user_id="@nobody:example.org"),
                message(2, to_user_id="@b_1:elsewhere.org"),
                {"kind": "room_event", "appservice_id": "silent", "event": event},
                {"kind": "room_event", "appservice_id": "unheard-of", "event": event},
                {"kind": "device_list", "appservice_id": "unheard-of", "changed": [BOT]},
                message(6),
            )
            await bot.until(lambda: len(bot.to_device) == 1)
    unknown = ["M_NOT_FOUND"] * 2
    assert taken.verdicts == ["dropped", "dropped", "dropped", *unknown, "accepted"]
    rows = await pg.fetch("select kind, outcome, items from appservice_bridge.ledger")
    counted = {(row["kind"], row["outcome"]): row["items"] for row in rows}
    assert counted["to_device", "foreign"] == 2
    assert counted["room_event", "refused"] == counted["device_list", "refused"] == 1


async def test_an_appservice_that_wants_no_encryption_gets_nothing_of_it(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        off = {"org.matrix.msc3202": False}
        files = ingest_files(
            tmp_path, database, [registration("bot", bot.url, users=["@b_.*"]) | off]
        )
        async with worker(files), sender(files.relay_url) as hs:
            taken = await hs.send(
                "1",
                message(),
                {"kind": "device_list", "appservice_id": "bot", "changed": ["@c:remote"]},
                {"kind": "ephemeral", "appservice_id": "bot", "event": TYPING},
            )
            assert taken.verdicts == ["dropped", "dropped", "accepted"]
            await bot.until(lambda: len(bot.taken) == 1)
    assert bot.items("ephemeral") == [TYPING]
    assert "org.matrix.msc3202.device_lists" not in json.loads(bot.taken[0].body)


UNREADABLE: Final = [b"", b"\xff", b"no json", b"[]", b'"x"', b"null", b'{"facts":[}', b"{}}"]


async def test_a_body_that_is_no_json_object_is_refused_whole(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (_, hs):
        for body in UNREADABLE:
            assert (await hs.put("1", body)).refusal == (400, "M_NOT_JSON"), body
        packed = await hs.put("1", b"xyz", **{"Content-Encoding": "gzip"})
        assert packed.refusal == (400, "M_NOT_JSON")
    assert (await pg.fetchval(CAPTURED), await pg.fetchval(BATCHES)) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"facts": None}, (400, "M_BAD_JSON")),
        ({"facts": {}}, (400, "M_BAD_JSON")),
        ({"batch_id": 1}, (400, "M_BAD_JSON")),
        ({"batch_id": ""}, (400, "M_INVALID_PARAM")),
        ({"batch_id": "other"}, (400, "M_INVALID_PARAM")),
        ({"batch_id": "1\0"}, (400, "M_INVALID_PARAM")),
        ({"batch_id": "\ud800"}, (400, "M_INVALID_PARAM")),
        ({"batch_id": "x" * 256}, (400, "M_INVALID_PARAM")),
        ({"origin": None}, (400, "M_BAD_JSON")),
        ({"origin": "elsewhere.org"}, (403, "M_FORBIDDEN")),
        ({"facts": [0] * (MAX_FACTS + 1)}, (413, "M_TOO_LARGE")),
    ],
)
async def test_a_batch_that_is_none_is_refused_whole(
    pg: "asyncpg.Connection[asyncpg.Record]",
    database: str,
    tmp_path: Path,
    changes: dict[str, Any],
    refusal: tuple[int, str],
) -> None:
    async with one_bot(tmp_path, database) as (_, hs):
        assert (await hs.send("1", message(), **changes)).refusal == refusal
    assert (await pg.fetchval(CAPTURED), await pg.fetchval(BATCHES)) == (0, 0)


async def test_only_what_the_homeserver_signed_is_taken(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    batch = batch_of("1", message())
    good = signed(batch)["signatures"]["example.org"]["ed25519:a_1"]
    stranger = generate_signing_key("a_1")
    unauthorized: list[dict[str, Any]] = [
        batch,
        batch | {"signatures": None},
        batch | {"signatures": {"example.org": "x"}},
        batch | {"signatures": {"example.org": {"ed25519:a_1": 5}}},
        batch | {"signatures": {"elsewhere.org": {"ed25519:a_1": good}}},
        batch | {"signatures": {"example.org": {"ed25519:other": good}}},
        batch | {"signatures": {"example.org": {"rsa:a_1": good}}},
    ]
    forbidden: list[dict[str, Any]] = [
        signed(batch, key=stranger),
        batch | {"signatures": {"example.org": {"ed25519:a_1": "not base 64 ü"}}},
        batch | {"signatures": {"example.org": {"ed25519:a_1": good[:-4]}}},
        signed(batch) | {"facts": [message(2)]},
        signed(batch) | {"more": 1},
    ]
    async with one_bot(tmp_path, database) as (_, hs):
        for one in unauthorized:
            taken = await hs.put("1", json.dumps(one).encode())
            assert taken.refusal == (401, "M_UNAUTHORIZED"), one
        for one in forbidden:
            taken = await hs.put("1", json.dumps(one).encode())
            assert taken.refusal == (403, "M_FORBIDDEN"), one
        assert (await pg.fetchval(CAPTURED), await pg.fetchval(BATCHES)) == (0, 0)


async def test_how_the_batch_is_written_does_not_matter_to_its_signature(
    database: str, tmp_path: Path
) -> None:
    batch = signed(batch_of("1", message(1, content={"ключ": "🔑", "n": 1}), more=[1.5])) | {
        "unsigned": {"sent_at": 1}
    }
    indented = json.dumps(batch, indent=3, ensure_ascii=True).encode()
    async with one_bot(tmp_path, database) as (bot, hs):
        taken = await hs.put("1", gzip.compress(indented), **{"Content-Encoding": "gzip"})
        assert taken.verdicts == ["accepted"]
        await bot.until(lambda: len(bot.to_device) == 1)
    assert '"content":{"n":1,"ключ":"🔑"}'.encode() in bot.taken[0].body


async def test_a_batch_goes_to_the_relays_listener_and_to_no_other(
    database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        files = ingest_files(tmp_path, database, [registration("bot", bot.url)])
        async with worker(files), sender(files.admin_url) as hs:
            body = json.dumps(signed(batch_of("1", message()), key=KEY)).encode()
            async with hs.session.put(
                f"{files.admin_url}/_appservice_bridge/v1/facts/1", data=body
            ) as response:
                assert response.status == 404


async def test_a_body_over_64_mib_is_refused(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (_, hs):
        body = b"{" + b" " * MAX_BODY_BYTES + b"}"
        assert (await hs.put("1", body)).refusal == (413, "M_TOO_LARGE")
    assert await pg.fetchval(BATCHES) == 0


async def test_over_the_budget_a_batch_waits_with_its_homeserver(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path, looked: asyncio.Event
) -> None:
    async with one_bot(tmp_path, database) as (bot, hs):
        await looked.wait()
        await pg.execute("update appservice_bridge.capture_watch set keys_only = true")
        assert (await hs.send("batch", message(1))).refusal == (503, "M_LIMIT_EXCEEDED")
        assert await pg.fetchval(BATCHES) == 0
        await pg.execute("update appservice_bridge.capture_watch set keys_only = false")
        assert (await hs.send("batch", message(1))).results == [{"status": "accepted"}]
        await bot.until(lambda: len(bot.to_device) == 1)
