"""What may have been processed stays whole: until it is a suspect, or an operator says so."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from appservice_bridge.delivery.connections import QuietConnector
from appservice_bridge.delivery.http_sender import HttpSender
from appservice_bridge.domain.outcome import Refused
from appservice_bridge.domain.policy import DeliveryPolicy
from tests.delivery.test_kills import held_at, its_lease_ran_out, somebody_waits
from tests.support.appservice import Appservice, Request, appservice, by_hand, next_body, ok
from tests.support.bridge import Files, registration, worker, worker_process, write_files
from tests.support.facts import Connection, capture, wait_until
from tests.support.intake import registered
from tests.support.refusing import (
    BOT,
    always,
    buried,
    capture_all,
    lane,
    ledger,
    numbers,
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


def once(first: int, then: int) -> Any:
    """One answer to the first transaction, another to all that follow; pings are taken."""
    seen: list[Request] = []

    def answer(request: Request) -> tuple[int, dict[str, str], bytes]:
        if request.method == "POST":
            return ok(request)
        seen.append(request)
        return first if len(seen) == 1 else then, {}, b""

    return answer


async def stays_whole(pg: Connection, bot: Appservice) -> None:
    """Refused often enough to be split, if it could be."""
    before = len(sent(bot.requests))
    await bot.until(lambda: len(sent(bot.requests)) >= before + 6)
    assert len({one.txn_id for one in sent(bot.requests)}) == 1
    assert await pg.fetchval("select doubtful from appservice_bridge.sealed")
    assert probes(bot.requests) == []


@pytest.mark.parametrize("first", [500, 503, 408])
async def test_a_transaction_that_once_may_have_been_processed_is_not_split(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path, first: int
) -> None:
    bot.answer = once(first, 400)
    async with worker(bridge(tmp_path, database, bot)):
        await capture_all(pg, 4)
        await stays_whole(pg, bot)
        bot.answer = ok
        await sent_all(pg)
    assert numbers(bot.to_device) == [1, 2, 3, 4]


async def test_a_timeout_and_then_400_splits_nothing_until_an_operator_asks(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.slow = lambda request: 1.5 if request is bot.requests[0] else 0.0
    bot.answer = refuses(400)
    async with worker(bridge(tmp_path, database, bot, timeout_seconds=1)):
        await capture_all(pg, 4, poison=[2])
        await stays_whole(pg, bot)
        whole = len(bot.requests)
        await pg.execute("update appservice_bridge.lane set split_asked_at = now()")
        await bot.until(lambda: len({one.txn_id for one in bot.requests}) >= 2)
        assert await lane(pg, "split_asked_at") is None
        assert {request.txn_id for request in bot.requests[:whole]} == {bot.requests[0].txn_id}
        # what is asked for is one split; the parts are suspects, a quarter of an hour after
        await bot.until(lambda: len(bot.requests) >= whole + 8)
        assert await buried(pg) == []
        await pg.execute(
            "update appservice_bridge.sealed set refused_since = now() - interval '1 hour'"
        )
        await sent_all(pg)
    assert numbers(bot.to_device) == [1, 3, 4]
    assert len(await buried(pg)) == 1


async def test_what_rests_is_split_at_once_when_an_operator_asks(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.answer = always(500)
    backoff = {"first_seconds": 300, "ceiling_seconds": 300}
    async with worker(bridge(tmp_path, database, bot, backoff=backoff)):
        await capture_all(pg, 4)
        await wait_until(pg, "select failed_attempts = 1 from appservice_bridge.lane")
        await pg.execute(
            "update appservice_bridge.lane set split_asked_at = now(), due_at = '-infinity'"
        )
        bot.answer = ok
        await sent_all(pg)
    assert [len(one.items("de.sorunome.msc2409.to_device")) for one in bot.requests] == [4, 2, 2]


async def test_an_operator_s_word_buries_no_single_item(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.answer = always(500)
    async with worker(bridge(tmp_path, database, bot)):
        await capture(pg, BOT, 1)
        await bot.until(lambda: len(bot.requests) >= 2)
        await pg.execute("update appservice_bridge.lane set split_asked_at = now()")
        await wait_until(pg, "select split_asked_at is null from appservice_bridge.lane")
        before = len(bot.requests)
        await bot.until(lambda: len(bot.requests) >= before + 2)
        assert len({one.txn_id for one in bot.requests}) == 1
    assert await buried(pg) == []


@pytest.mark.parametrize("well", [True, False])
async def test_a_5xx_that_never_ends_is_a_suspect_while_pings_succeed(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path, well: bool
) -> None:
    def answer(request: Request) -> tuple[int, dict[str, str], bytes]:
        if request.method == "POST":
            assert request.path == "/_matrix/app/v1/ping"
            assert request.token == "hs_bot"
            assert json.loads(request.body)["transaction_id"]
            return (200 if well else 502), {}, b"{}"
        return refuses(500)(request)

    bot.answer = answer
    backoff = {"first_seconds": 0.02, "ceiling_seconds": 0.05}
    async with worker(bridge(tmp_path, database, bot, backoff=backoff)):
        await capture_all(pg, 8, poison=[2])
        await bot.until(lambda: len(sent(bot.requests)) >= 25)
        assert len({one.txn_id for one in sent(bot.requests)}) == 1  # often, but not for long
        await pg.execute(
            "update appservice_bridge.sealed set refused_since = now() - interval '15 minutes'"
        )
        if well:
            await sent_all(pg)
        else:
            before = len(sent(bot.requests))
            await bot.until(lambda: len(sent(bot.requests)) >= before + 20)
            assert probes(bot.requests) == []
    if not well:
        assert bot.to_device == []
        return
    assert numbers(bot.to_device) == [1, 3, 4, 5, 6, 7, 8]
    assert [letter["status"] for letter in await buried(pg)] == [500]
    # the whole, its first half, its first quarter, and then the one
    assert await ledger(pg, "suspect") == {"transaction": 4}
    pings = [one for one in bot.requests if one.method == "POST"]
    assert bot.requests.index(pings[0]) >= 17


async def test_a_worker_killed_in_an_attempt_leaves_a_doubt(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.answer = refuses(400)
    files = bridge(tmp_path, database, bot)
    async with worker_process(files) as killed:
        bot.slow = lambda _: 1.0
        await capture_all(pg, 4, poison=[2])
        await bot.until(lambda: len(bot.requests) == 1)
        await killed.kill()
        bot.slow = lambda _: 0.0
        await its_lease_ran_out(pg)
        await killed.start()
        await stays_whole(pg, bot)


async def test_a_worker_killed_in_a_repeat_leaves_a_doubt_too(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.answer = refuses(400)
    files = bridge(tmp_path, database, bot)
    async with worker_process(files) as killed:
        bot.slow = lambda request: 1.0 if request is not bot.requests[0] else 0.0
        await capture_all(pg, 4, poison=[2])
        await bot.until(lambda: len(bot.requests) == 2)
        await killed.kill()
        bot.slow = lambda _: 0.0
        await its_lease_ran_out(pg)
        await killed.start()
        await stays_whole(pg, bot)


async def test_a_worker_killed_while_it_rests_leaves_none(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.answer = always(400)
    backoff = {"first_seconds": 2, "ceiling_seconds": 60}
    files = bridge(tmp_path, database, bot, backoff=backoff)
    async with worker_process(files) as killed:
        await capture_all(pg, 4, poison=[2])
        await wait_until(pg, "select failed_attempts = 1 from appservice_bridge.lane")
        await killed.kill()
        bot.answer = refuses(400)
        await its_lease_ran_out(pg)
        await killed.start()
        await sent_all(pg)
    assert numbers(bot.to_device) == [1, 3, 4]
    assert len(await buried(pg)) == 1


@pytest.mark.parametrize(
    "change",
    [
        "insert on appservice_bridge.sealed",  # a split, after the probe's ack, before its commit
        "insert on appservice_bridge.dead_letter",  # a burial, likewise
    ],
)
async def test_killed_before_the_commit_of_a_replacement_it_does_the_same_again(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path, change: str
) -> None:
    bot.answer = always(400)
    files = bridge(tmp_path, database, bot, backoff={"first_seconds": 0.3, "ceiling_seconds": 0.3})
    async with worker_process(files) as killed:
        await capture_all(pg, 4, poison=[2])
        await bot.until(lambda: len(bot.requests) >= 2)
        async with held_at(pg, database, change):
            bot.answer = refuses(400)
            await somebody_waits(pg)
            await killed.kill()
            await its_lease_ran_out(pg)
        await killed.start()
        if "dead_letter" in change:  # the outcome was written with the burial: it is in doubt
            await wait_until(pg, "select bool_or(doubtful) from appservice_bridge.sealed")
            await pg.execute(
                "update appservice_bridge.sealed set refused_since = now() - interval '1 hour',"
                " refusals = 17 where doubtful"
            )
        await sent_all(pg)
    assert numbers(bot.to_device) == [1, 3, 4]
    assert len(await buried(pg)) == 1
    assert await ledger(pg, "buried") == {"to_device": 1}


def held_back(when: Callable[[], bool], bot: Appservice) -> Callable[[Request], float]:
    """For `slow`: nothing more is answered from the request on at which this holds."""

    def hold(_: Request) -> float:
        if when():
            bot.open.clear()
        return 0.0

    return hold


async def test_a_paused_lane_finishes_its_attempt_and_sends_nothing_until_it_is_resumed(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.open.clear()
    async with worker(bridge(tmp_path, database, bot, max_items=2)):
        await capture_all(pg, 4)
        await bot.until(lambda: len(bot.requests) == 1)
        await pg.execute("update appservice_bridge.lane set paused_at = now()")
        bot.open.set()
        await bot.until(lambda: len(bot.taken) == 1)
        await capture(pg, BOT, 5)
        await pg.execute("update appservice_bridge.lane set due_at = '-infinity'")
        await asyncio.sleep(1.5)
        assert len(bot.requests) == 1
        assert await pg.fetchval("select count(*) from appservice_bridge.sealed") == 0
        await pg.execute("update appservice_bridge.lane set paused_at = null, due_at = '-infinity'")
        await sent_all(pg)
    assert numbers(bot.to_device) == [1, 2, 3, 4, 5]


async def test_a_lane_paused_while_it_is_refused_neither_repeats_nor_probes(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.answer = always(400)
    async with worker(bridge(tmp_path, database, bot)):
        await capture_all(pg, 2)
        await bot.until(lambda: len(bot.requests) >= 2)
        await pg.execute("update appservice_bridge.lane set paused_at = now()")
        await asyncio.sleep(2)  # what was under way has ended
        before = len(bot.requests)
        await asyncio.sleep(1.5)
        assert len(bot.requests) == before
        bot.answer = ok
        await pg.execute("update appservice_bridge.lane set paused_at = null, due_at = '-infinity'")
        await sent_all(pg)
    assert len({(one.txn_id, one.body) for one in sent(bot.requests)}) == 1


async def test_a_lane_paused_in_the_attempt_that_would_ask_for_a_probe_sends_none(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.answer = refuses(400)
    bot.slow = held_back(lambda: len(bot.requests) == 3, bot)
    async with worker(bridge(tmp_path, database, bot)):
        await capture_all(pg, 2, poison=[2])
        await bot.until(lambda: len(bot.requests) == 3)
        await pg.execute("update appservice_bridge.lane set paused_at = now()")
        bot.open.set()
        await asyncio.sleep(1.5)
        assert len(bot.requests) == 3
        await pg.execute("update appservice_bridge.lane set paused_at = null, due_at = '-infinity'")
        await sent_all(pg)
    assert numbers(bot.to_device) == [1]


async def test_a_no_to_the_second_copy_on_a_lost_connection_is_not_definite() -> None:
    """aiohttp sends a PUT again by itself when a connection that it kept turns out to be lost."""
    bodies: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while body := await next_body(reader):
                bodies.append(body)
                if len(bodies) == 2:
                    writer.close()  # it has the whole body, and may process it
                    return
                status = b"200 OK" if len(bodies) == 1 else b"400 Bad Request"
                writer.write(b"HTTP/1.1 %s\r\nContent-Length: 2\r\n\r\n{}" % status)

    known = registered(("bot", "@b_.*")).registrations["bot"]
    async with (
        by_hand(serve) as url,
        aiohttp.ClientSession(connector=QuietConnector(limit=0)) as session,
    ):
        to = HttpSender(session, replace(known, url=url), DeliveryPolicy())
        await to.send("1", b"{}", now=0.0)
        again = await to.send("2", b"{}", now=0.0)
        after = await to.send("3", b"{}", now=0.0)
    assert len(bodies) == 4
    assert again == Refused(status=400, answer="{}", sent_before=True)
    assert after == Refused(status=400, answer="{}", sent_before=False)


async def test_a_wake_while_a_suspect_is_pinged_ends_the_rest_that_follows(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.answer = always(500)
    bot.slow = held_back(lambda: bot.requests[-1].method == "POST", bot)
    backoff = {"first_seconds": 300, "ceiling_seconds": 300}
    files = bridge(tmp_path, database, bot, backoff=backoff)
    async with worker(files):
        await capture_all(pg, 4)
        await wait_until(pg, "select failed_attempts = 1 from appservice_bridge.lane")
    await pg.execute("update appservice_bridge.sealed set refusals = 18")
    await pg.execute("update appservice_bridge.lane set due_at = '-infinity'")
    async with worker(files):
        await bot.until(lambda: any(one.method == "POST" for one in bot.requests))
        await pg.execute(
            "update appservice_bridge.lane set due_at = '-infinity', woken_at = clock_timestamp()"
        )
        bot.slow = lambda _: 0.0
        bot.open.set()
        await bot.until(lambda: len(sent(bot.requests)) == 3)
