"""What operators change at the admin port: done at once, and put down with who did it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from tests.support.appservice import Appservice, appservice
from tests.support.bridge import Files, registration, worker, write_files
from tests.support.dead_letters import buried, set_aside
from tests.support.facts import Connection, capture, wait_until
from tests.support.reloading import ROOT, Operator, operator, with_tokens

BOT: Final = "@b_1:example.org"
LONG: Final = {"backoff": {"first_seconds": 300, "ceiling_seconds": 300}}
LANE: Final = "select {} from appservice_bridge.lane where appservice_id = 'bot'"


@pytest.fixture
async def bot() -> AsyncIterator[Appservice]:
    async with appservice() as one:
        yield one


@pytest.fixture
def files(database: str, tmp_path: Path, bot: Appservice) -> Files:
    some = [
        registration("bot", bot.url, users=["@b_.*"]),
        registration("gone", "http://127.0.0.1:9", users=["@g_.*"]),
    ]
    kept = LONG | {"keep_delivered_seconds": 3600}
    return with_tokens(write_files(tmp_path, database, some, delivery=kept))


@pytest.fixture
async def ops(pg: Connection, files: Files) -> AsyncIterator[Operator]:
    """An admin, who may do all."""
    async with worker(files), operator(files, role="admin") as one:
        yield one


async def order(ops: Operator, path: str, body: Any = None) -> dict[str, Any]:
    status, told = await ops.ask("POST", ROOT + path, body=body)
    assert (status, told["version"]) == (200, 1), told
    return told


async def refused(ops: Operator, path: str, body: Any = None) -> tuple[int, str]:
    status, told = await ops.ask("POST", ROOT + path, body=body)
    assert set(told) == {"errcode", "error"}
    return status, told["errcode"]


async def audit(ops: Operator) -> list[tuple[str, str, str]]:
    """Action, appservice and outcome, the oldest first; all by one admin, from here."""
    entries = (await ops.get("/audit"))["entries"][::-1]
    assert {(one["name"], one["role"], one["address"]) for one in entries} <= {
        ("admin", "admin", "127.0.0.1")
    }
    return [(one["action"], one["appservice"], one["outcome"]) for one in entries]


async def test_a_lane_is_paused_and_goes_on_and_the_audit_says_so(
    ops: Operator, pg: Connection, bot: Appservice
) -> None:
    assert (await order(ops, "/appservices/bot/pause"))["outcome"] == "paused"
    assert (await order(ops, "/appservices/bot/pause"))["outcome"] == "was_paused"
    assert await pg.fetchval(LANE.format("paused_at is not null"))
    assert await refused(ops, "/appservices/bot/retry") == (409, "M_UNKNOWN")
    await capture(pg, BOT, 1)
    assert (await order(ops, "/appservices/bot/resume"))["outcome"] == "resumed"
    await bot.until(lambda: len(bot.to_device) == 1)
    assert await audit(ops) == [
        ("pause", "bot", "paused"),
        ("pause", "bot", "was paused already"),
        ("resume", "bot", "resumed"),
    ]


async def test_retry_ends_a_rest_and_may_ask_for_a_split(
    ops: Operator, pg: Connection, bot: Appservice
) -> None:
    bot.answer = lambda _: (503, {}, b"{}")
    await order(ops, "/appservices/bot/pause")
    await capture(pg, BOT, 1)
    await capture(pg, BOT, 2)
    await wait_until(pg, "select count(*) = 2 from appservice_bridge.outbox")
    await order(ops, "/appservices/bot/resume")
    await bot.until(lambda: len(bot.requests) == 1)
    while not await pg.fetchval(LANE.format("failed_attempts > 0")):
        pass
    assert (await order(ops, "/appservices/bot/retry", {"split": True}))["in_flight"]
    await bot.until(lambda: len(bot.requests) >= 2)
    assert ("retry", "bot", "rest ended, may be split") in await audit(ops)
    assert await refused(ops, "/appservices/gone/retry", {"split": True}) == (409, "M_UNKNOWN")
    await wait_until(pg, "select bool_and(items = 1) from appservice_bridge.sealed")
    assert await refused(ops, "/appservices/bot/retry", {"split": True}) == (409, "M_UNKNOWN")


async def test_retry_sets_aside_the_one_item_of_the_transaction_that_is_named(
    ops: Operator, pg: Connection, bot: Appservice
) -> None:
    bot.answer = lambda _: (503, {}, b"{}")
    await capture(pg, BOT, 1)
    await bot.until(lambda: len(bot.requests) == 1)
    while not await pg.fetchval(LANE.format("failed_attempts > 0")):
        pass
    (owed,) = (await ops.get("/appservices/bot/transactions"))["transactions"]
    another = {"bury": owed["txn_id"] + "0"}
    assert await refused(ops, "/appservices/bot/retry", another) == (409, "M_UNKNOWN")
    told = await order(ops, "/appservices/bot/retry", {"bury": owed["txn_id"]})
    assert told["outcome"] == "buries"
    while not (await ops.get("/appservices/bot/dead-letters"))["dead_letters"]:
        await asyncio.sleep(0.1)
    assert ("retry", "bot", "rest ended, to be buried") in await audit(ops)


async def test_ping_tells_who_answers_from_who_does_not(ops: Operator) -> None:
    told = await order(ops, "/appservices/bot/ping")
    assert (told["outcome"], told["status"]) == ("answered", 200)
    told = await order(ops, "/appservices/gone/ping")
    assert (told["outcome"], told["errcode"]) == ("not_answered", "M_CONNECTION_FAILED")
    assert await audit(ops) == [("ping", "bot", "answered, rest ended")]


async def test_replay_delivers_again_what_was_kept(
    ops: Operator, pg: Connection, bot: Appservice
) -> None:
    assert await refused(ops, "/appservices/bot/replay", {"since_seconds": 60}) == (
        409,
        "M_UNKNOWN",
    )
    await capture(pg, BOT, 1)
    await bot.until(lambda: len(bot.to_device) == 1)
    while not await pg.fetchval("select count(*) from appservice_bridge.kept"):
        pass
    told = await order(ops, "/appservices/bot/replay", {"since_seconds": 1e400})
    assert (told["items"], told["transactions"]) == ({"to_device": 1}, 1)
    await bot.until(lambda: len(bot.to_device) == 2)
    assert ("replay", "bot", "1 items replayed") in await audit(ops)


async def test_what_reads_synapse_s_tables_is_refused_where_nobody_does(ops: Operator) -> None:
    for verb in ("resync", "backfill"):
        assert await refused(ops, f"/appservices/bot/{verb}") == (409, "M_UNKNOWN")
    assert await audit(ops) == []


async def test_letters_are_put_back_and_the_rest_is_named(
    ops: Operator, pg: Connection, bot: Appservice
) -> None:
    good = await set_aside(pg, 1)
    bad = await set_aside(pg, 2, redrivable=False, payload=b"SECRET", reason="malformed")
    nobody = str(uuid4())
    told = await order(ops, "/dead-letters/redrive", {"ids": [good, bad, nobody, good]})
    assert told["redriven"] == [good]
    assert [one["id"] for one in told["refused"]] == [bad]
    assert "malformed" in told["refused"][0]["reason"]
    assert told["unknown"] == [nobody]
    await bot.until(lambda: len(bot.to_device) == 1)
    assert await buried(pg) == 1
    assert await audit(ops) == [("redrive", "bot", "1 redriven")]


async def test_letters_are_discarded_only_by_an_admin(
    ops: Operator, pg: Connection, files: Files
) -> None:
    letter = await set_aside(pg, 1)
    async with operator(files, role="operator") as other:
        status = await refused(other, "/dead-letters/discard", {"ids": [letter]})
        assert status == (403, "M_FORBIDDEN")
        assert (await other.ask("GET", ROOT + "/audit"))[0] == 403
    assert await buried(pg) == 1
    told = await order(ops, "/dead-letters/discard", {"ids": [letter]})
    assert (told["discarded"], told["unknown"]) == ([letter], [])
    assert await audit(ops) == [("discard", "bot", "1 discarded")]


async def test_letters_are_listed_in_pages_and_never_what_is_in_them(
    ops: Operator, pg: Connection
) -> None:
    some = [await set_aside(pg, n) for n in range(5)]
    await set_aside(pg, 9, appservice_id="gone")
    seen, after = [], ""
    while after is not None:
        page = await ops.get(f"/appservices/bot/dead-letters?limit=2{after and '&after=' + after}")
        seen += [one["id"] for one in page["dead_letters"]]
        assert "SECRET" not in json.dumps(page)
        assert "m.test" not in json.dumps(page)
        after = page["after"]
    assert seen == some[::-1]
    one = page["dead_letters"][0]
    assert (one["status"], one["errcode"], one["user_id"]) == (400, "M_BAD_JSON", BOT)


NOT_UNDERSTOOD: Final[tuple[tuple[str, Any], ...]] = (
    ("/appservices/bot/pause", []),
    ("/appservices/bot/pause", {"x": 1}),
    ("/appservices/bot/retry", {"split": 1}),
    ("/appservices/bot/retry", {"bury": 1}),
    ("/appservices/bot/retry", {"bury": "x", "split": True}),
    ("/appservices/bot/replay", {}),
    ("/appservices/bot/replay", {"since_seconds": 1, "transaction": "x"}),
    ("/appservices/bot/replay", {"since_seconds": -1}),
    ("/appservices/bot/replay", {"since_seconds": True}),
    ("/appservices/bot/replay", {"since_seconds": float("nan")}),
    ("/appservices/bot/replay", {"transaction": "\0"}),
    ("/appservices/bot/replay", {"transaction": 7}),
    ("/appservices/bot/backfill", {"dry_run": None}),
    ("/dead-letters/redrive", {}),
    ("/dead-letters/redrive", {"ids": []}),
    ("/dead-letters/redrive", {"ids": ["x"]}),
    ("/dead-letters/discard", {"ids": [[]]}),
    ("/dead-letters/discard", {"ids": [7]}),
    ("/dead-letters/discard", {"ids": [str(uuid4())] * 1001}),
)


async def test_an_order_that_is_not_understood_changes_nothing(ops: Operator) -> None:
    for path, body in NOT_UNDERSTOOD:
        assert await refused(ops, path, body) == (400, "M_BAD_JSON"), (path, body)
    assert await audit(ops) == []


async def test_a_body_that_is_no_json_or_too_large_is_refused(ops: Operator, files: Files) -> None:
    for body, status, errcode in (
        (b"{", 400, "M_NOT_JSON"),
        (b"[" * 60_000, 400, "M_NOT_JSON"),
        (b" " * 70_000, 413, "M_TOO_LARGE"),
    ):
        async with ops.session.post(
            files.admin_url + ROOT + "/appservices/bot/pause",
            data=body,
            headers={"Authorization": "Bearer secret-admin"},
        ) as answer:
            assert answer.status == status
            assert (await answer.json())["errcode"] == errcode


async def test_an_order_to_nobody_is_not_found(ops: Operator) -> None:
    for verb in ("pause", "resume", "retry", "ping"):
        assert await refused(ops, f"/appservices/bit/{verb}") == (404, "M_NOT_FOUND")
    assert await refused(ops, "/appservices/bit/replay", {"since_seconds": 1}) == (
        404,
        "M_NOT_FOUND",
    )
