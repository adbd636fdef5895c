"""What an appservice refuses is found, and buried alone; an outage splits and buries nothing."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.appservice import Appservice, Request, appservice, ok
from tests.support.bridge import Files, registration, worker, write_files
from tests.support.facts import Connection, capture, message, wait_until
from tests.support.refusing import (
    BOT,
    always,
    buried,
    capture_all,
    lane,
    ledger,
    numbers,
    places,
    probes,
    refuses,
    sent,
    sent_all,
)


@pytest.fixture
async def bot() -> AsyncIterator[Appservice]:
    async with appservice() as one:
        yield one


def bridge(directory: Path, database: str, bot: Appservice, **delivery: Any) -> Files:
    ours = [registration("bot", bot.url, users=["@b_.*"])]
    return write_files(directory, database, ours, delivery=delivery)


@pytest.mark.parametrize("status", [400, 413, 415, 422])
async def test_case_24_what_is_always_refused_is_found_and_buried_and_the_rest_arrives_in_order(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path, status: int
) -> None:
    poison = [*places(5, 190, seed=status), 199, 200]
    bot.answer = refuses(status)
    files = bridge(tmp_path, database, bot, max_items=80)
    async with worker(files):
        await capture_all(pg, 200, poison)
        await wait_until(pg, "select acked_to = 200 from appservice_bridge.lane")
        await wait_until(pg, "select count(*) = 0 from appservice_bridge.outbox")
        await capture(pg, BOT, 201)
        await bot.until(lambda: numbers(bot.to_device)[-1] == 201)
        await sent_all(pg)
        await wait_until(
            pg,
            "select bytes_in = bytes_out"
            " from appservice_bridge.lane natural join appservice_bridge.outbox_head",
        )
    assert numbers(bot.to_device) == [n for n in range(1, 202) if n not in poison]
    letters = await buried(pg)
    assert [json.loads(letter["payload"])["content"]["n"] for letter in letters] == poison
    for letter in letters:
        assert (letter["kind"], letter["user_id"], letter["device_id"]) == ("to_device", BOT, "DEV")
        assert (letter["status"], letter["errcode"]) == (status, "M_BAD_JSON")
        assert letter["answer"] == '{"errcode":"M_BAD_JSON","error":"no \\u0000 like this"}'
        assert letter["redrivable"]
        assert letter["txn_id"] in {request.txn_id for request in sent(bot.requests)}
    assert await ledger(pg, "buried") == {"to_device": 7}
    assert await ledger(pg, "delivered") == {"to_device": 194}


async def test_between_two_burials_something_else_is_taken(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.answer = refuses(400)
    async with worker(bridge(tmp_path, database, bot)):
        await capture_all(pg, 4, poison=[1, 2, 3, 4])
        await sent_all(pg)
    ids = [letter["txn_id"] for letter in await buried(pg)]
    assert len(ids) == 4
    order = [one.txn_id for one in bot.requests]
    for id_ in ids:  # refused, the probe that was taken, refused
        last = len(order) - 1 - order[::-1].index(id_)
        assert order[last - 2] == id_
        assert bot.requests[last - 1] in probes(bot.taken)


async def test_an_appservice_that_refuses_everything_splits_and_buries_nothing(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.answer = always(400)
    async with worker(bridge(tmp_path, database, bot)):
        await capture_all(pg, 20)
        await bot.until(lambda: len(probes(bot.requests)) >= 4)
        assert await pg.fetchval("select count(*) from appservice_bridge.sealed") == 1
        bot.answer = ok
        await bot.until(lambda: len(bot.to_device) == 20)
    assert len({(one.txn_id, one.body) for one in sent(bot.requests)}) == 1
    ids = [one.txn_id for one in probes(bot.requests)]
    assert len(set(ids)) == len(ids)
    assert await buried(pg) == []
    assert numbers(bot.to_device) == list(range(1, 21))


async def test_one_item_that_is_refused_is_not_buried_while_probes_are(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.answer = always(400)
    async with worker(bridge(tmp_path, database, bot)):
        await capture(pg, BOT, 1)
        await bot.until(lambda: len(probes(bot.requests)) >= 3)
        bot.answer = ok
        await bot.until(lambda: len(bot.to_device) == 1)
    assert await buried(pg) == []


async def test_an_outage_that_ends_between_a_refusal_and_the_probe_buries_nothing(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.answer = lambda _: (200 if probes(bot.requests) else 400, {}, b"")
    async with worker(bridge(tmp_path, database, bot)):
        await capture(pg, BOT, 1)
        await bot.until(lambda: len(bot.to_device) == 1)
    assert await buried(pg) == []


async def test_one_item_that_is_refused_is_not_buried_while_probes_are_unanswered(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.answer = always(400)
    bot.slow = lambda request: 1.0 if request in probes([request]) else 0.0
    async with worker(bridge(tmp_path, database, bot, timeout_seconds=0.3)):
        await capture(pg, BOT, 1)
        await bot.until(lambda: len(probes(bot.requests)) >= 3)
        assert await buried(pg) == []
        bot.answer = ok
        await bot.until(lambda: len(bot.to_device) == 1)


async def test_a_transaction_is_sent_three_times_before_it_is_split_and_a_part_once(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.answer = refuses(400)
    async with worker(bridge(tmp_path, database, bot)):
        await capture_all(pg, 4, poison=[4])
        await sent_all(pg)
    lengths = [len(one.items("de.sorunome.msc2409.to_device")) for one in bot.requests]
    # whole, three times; probe; halves; probe; the second one's halves; probe, and again
    assert lengths == [4, 4, 4, 0, 2, 2, 0, 1, 1, 0, 1]


async def test_case_21_what_is_too_large_is_halved_at_once_and_the_cap_is_learnt(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path
) -> None:
    limit = 40_000

    def answer(request: Request) -> tuple[int, dict[str, str], bytes]:
        return (413, {}, b"") if len(request.body) > limit else ok(request)

    async def send(first: int, last: int, padding: int = 1000) -> None:
        for n in range(first, last + 1):
            await capture(pg, BOT, n, message(n=n, padding="x" * padding).encode())

    bot.answer = answer
    async with worker(bridge(tmp_path, database, bot)):
        await send(1, 200)
        await sent_all(pg)
        assert probes(bot.requests) == []
        refused = {one.txn_id for one in bot.requests if len(one.body) > limit}
        assert refused
        assert refused.isdisjoint(one.txn_id for one in bot.taken)  # halves have ids of their own
        assert len({one.txn_id for one in bot.requests}) == len(bot.requests)
        assert 8192 <= await lane(pg, "body_cap_bytes") <= limit
        before = len(bot.requests)
        await send(201, 400)
        await sent_all(pg)
        assert all(len(one.body) <= limit for one in bot.requests[before:])
        await send(401, 401, padding=limit)
        await send(402, 402)
        await bot.until(lambda: numbers(bot.to_device)[-1] == 402)
        await sent_all(pg)
    assert numbers(bot.to_device) == [n for n in range(1, 403) if n != 401]
    assert [letter["status"] for letter in await buried(pg)] == [413]


async def test_the_learnt_cap_is_forgotten_after_a_day(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path
) -> None:
    files = bridge(tmp_path, database, bot)
    async with worker(files):
        pass
    for age, most in (("23 hours", 8192), ("25 hours", 900_000)):
        await pg.execute(
            "update appservice_bridge.lane set body_cap_bytes = 8192,"
            " body_cap_at = now() - $1::text::interval",
            age,
        )
        await capture_all(pg, 200)
        bot.requests.clear()
        async with worker(files):
            await sent_all(pg)
        await pg.execute("delete from appservice_bridge.taken")
        assert most / 2 < max(len(one.body) for one in bot.requests) <= most or most > 8192
        assert (max(len(one.body) for one in bot.requests) > 8192) is (most > 8192)


@pytest.mark.parametrize("status", [404, 502])
async def test_case_34_a_proxy_that_answers_for_a_dead_container_buries_and_splits_nothing(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path, status: int
) -> None:
    bot.answer = always(status)
    backoff = {"first_seconds": 0.02, "ceiling_seconds": 0.05}
    async with worker(bridge(tmp_path, database, bot, max_items=300, backoff=backoff)):
        await capture_all(pg, 1000)
        await bot.until(lambda: len(bot.requests) >= 40)
        # ten minutes, as the worker finds them
        await pg.execute(
            "update appservice_bridge.sealed set refused_since = now() - interval '10 minutes'"
        )
        await bot.until(lambda: len(bot.requests) >= 60)
        assert await pg.fetchval("select count(*) from appservice_bridge.sealed") == 1
        bot.answer = ok
        await sent_all(pg)
    assert numbers(bot.to_device) == list(range(1, 1001))
    assert await buried(pg) == []
    assert len({one.txn_id for one in sent(bot.requests)}) == 4
    assert await ledger(pg, "suspect") == {}


@pytest.mark.parametrize("status", [401, 403])
async def test_case_17_a_wrong_token_is_kept_and_told_and_rests_at_the_ceiling(
    pg: Connection,
    database: str,
    bot: Appservice,
    tmp_path: Path,
    status: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bot.answer = always(status)
    backoff = {"first_seconds": 0.1, "ceiling_seconds": 300}
    files = bridge(tmp_path, database, bot, backoff=backoff)
    async with worker(files):
        await capture_all(pg, 2)
        await wait_until(pg, "select failed_attempts = 1 from appservice_bridge.lane")
        rests = "extract(epoch from due_at - clock_timestamp())::float8"
        assert 100 < await lane(pg, rests) <= 300
        assert await lane(pg, "last_status") == status
        bot.answer = ok
        await pg.execute("update appservice_bridge.lane set due_at = '-infinity'")
        await bot.until(lambda: len(bot.to_device) == 2)
    assert {one.path.startswith("/_matrix/app/v1/") for one in bot.requests} == {True}
    assert "transaction.unauthorized" in capsys.readouterr().out
    assert await buried(pg) == []


async def test_case_18_an_old_path_is_taken_with_the_same_id_and_body_and_probes_go_there_too(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path
) -> None:
    def answer(request: Request) -> tuple[int, dict[str, str], bytes]:
        if request.path.startswith("/_matrix"):
            return 404, {}, b'{"errcode":"M_UNRECOGNIZED"}'
        return refuses(400)(request)

    bot.answer = answer
    async with worker(bridge(tmp_path, database, bot)):
        await capture_all(pg, 8, poison=[3])
        await sent_all(pg)
    assert numbers(bot.to_device) == [1, 2, 4, 5, 6, 7, 8]
    assert len(await buried(pg)) == 1
    bodies = {(one.txn_id, one.body) for one in bot.requests}
    assert len(bodies) == len({one.txn_id for one in bot.requests})
