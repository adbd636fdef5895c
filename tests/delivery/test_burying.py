"""An operator's word for what no appservice will ever acknowledge: it is set aside, alone."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from appservice_bridge.delivery import operating
from appservice_bridge.storage.database import Database
from tests.delivery.test_kills import held_at, its_lease_ran_out, somebody_waits
from tests.support.appservice import Appservice, Request, appservice, ok
from tests.support.bridge import Files, registration, worker, worker_process, write_files
from tests.support.command import command
from tests.support.connecting import connected, files_for, numbers_in, polling
from tests.support.dead_letters import BY
from tests.support.facts import Connection, wait_until
from tests.support.refusing import (
    POISON,
    always,
    buried,
    capture_all,
    ledger,
    numbers,
    refuses,
    sent,
    sent_all,
)

ONE_EACH: Final = {"max_items": 1}
LONG: Final = {"backoff": {"first_seconds": 300, "ceiling_seconds": 300}}
ASKED: Final = "select bool_or(bury_asked_at is not null) from appservice_bridge.sealed"
FAILED: Final = "select failed_attempts > 0 from appservice_bridge.lane"
ACKED: Final = "select acked_to = {} from appservice_bridge.lane"


@pytest.fixture
async def bot() -> AsyncIterator[Appservice]:
    async with appservice() as one:
        yield one


def bridge(directory: Path, database: str, bot: Appservice, **delivery: Any) -> Files:
    ours = [registration("bot", bot.url, users=["@b_.*"])]
    return write_files(directory, database, ours, delivery=ONE_EACH | delivery)


async def says(files: Files, *words: str) -> None:
    code, _, err = await command(*words, "--config", str(files.config))
    assert (code, err) == (0, "")


async def bury(db: Database) -> None:
    """What `retry bot --bury` does."""
    one = await operating.buriable(db, "bot")
    await operating.bury(db, "bot", one.txn_id, by=BY)


async def is_set_aside(pg: Connection, files: Files, poison: int, status: int | None) -> None:
    """It is a dead letter with its reason, and the books balance."""
    (letter,) = await buried(pg)
    assert (letter["reason"], letter["status"]) == ("set aside by an operator", status)
    assert (letter["stream_id"], letter["redrivable"]) == (poison, True)
    assert await ledger(pg, "buried") == {"to_device": 1}
    await says(files, "audit")


async def test_what_is_answered_500_without_a_ping_is_set_aside_and_the_rest_is_delivered(
    pg: Connection, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.answer = refuses(500)
    files = bridge(tmp_path, database, bot, **LONG)
    async with worker(files):
        await capture_all(pg, 4, poison=[2])
        await wait_until(pg, FAILED)
        await says(files, "retry", "bot", "--bury", "--yes")
        await sent_all(pg)
        assert numbers(bot.to_device) == [1, 3, 4]
        await is_set_aside(pg, files, 2, None)
        attempts = [one for one in sent(bot.requests) if POISON in one.body]
        (letter,) = await buried(pg)
        assert [one.txn_id for one in attempts] == [letter["txn_id"]]
        assert await ledger(pg, "suspect") == {"transaction": 1}
        bot.answer = ok
        await says(files, "redrive", str(letter["dead_letter_id"]))
        await bot.until(lambda: numbers(bot.to_device) == [1, 3, 4, 2])
        await sent_all(pg)
        await says(files, "audit")
    assert await buried(pg) == []


async def test_an_attempt_that_is_under_way_is_waited_for_and_its_answer_is_kept(
    pg: Connection, db: Database, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.answer = refuses(500)
    files = bridge(tmp_path, database, bot, **LONG)
    async with worker(files):
        bot.open.clear()
        await capture_all(pg, 2, poison=[1])
        await bot.until(lambda: len(bot.requests) == 1)
        await bury(db)
        assert await buried(pg) == []
        bot.open.set()
        await sent_all(pg)
        await is_set_aside(pg, files, 1, 500)
    assert [numbers_of(one) for one in bot.requests] == [[1], [2]]


async def test_an_ack_that_comes_first_wins(
    pg: Connection, db: Database, database: str, bot: Appservice, tmp_path: Path
) -> None:
    files = bridge(tmp_path, database, bot)
    async with worker(files):
        bot.open.clear()
        await capture_all(pg, 3)
        await bot.until(lambda: len(bot.requests) == 1)
        await bury(db)
        assert await pg.fetchval(ASKED)
        bot.open.set()
        await sent_all(pg)  # and what followed was not meant
    assert numbers(bot.to_device) == [1, 2, 3]
    assert await buried(pg) == []
    assert await ledger(pg, "delivered") == {"to_device": 3}


async def test_a_websocket_that_dies_of_an_item_is_not_sent_it_again(
    pg: Connection, db: Database, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "websocket", delivery=ONE_EACH | LONG)
    await capture_all(pg, 3)
    async with worker(files):
        for _ in range(2):
            async with connected(files, answers=False) as dying:
                assert numbers_in(await dying.next()) == [1]
            await wait_until(pg, "select worker_id is null from appservice_bridge.lane")
        await bury(db)
        async with connected(files) as well:
            await sent_all(pg)
        assert well.numbers == [2, 3]
        await is_set_aside(pg, files, 1, None)


async def test_an_error_over_a_websocket_that_names_no_item_is_kept_with_the_letter(
    pg: Connection, db: Database, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "websocket", delivery=ONE_EACH)
    await capture_all(pg, 2)
    async with worker(files), connected(files, answers=False) as one:
        for _ in range(2):  # the same again, whatever it says
            told = await one.next()
            assert numbers_in(told) == [1]
            if one.looked_at == 1:
                await refuse(one, told)
        await bury(db)  # under way
        await wait_until(pg, ASKED)
        await refuse(one, told)
        following = await one.next()
        assert numbers_in(following) == [2]
        await one.ack(following)
        await sent_all(pg)
        await is_set_aside(pg, files, 1, 500)
    assert (await buried(pg))[0]["errcode"] == "M_UNKNOWN"


async def refuse(one: Any, transaction: dict[str, Any]) -> None:
    no = {"code": "M_UNKNOWN", "message": "no"}
    await one.say({"id": transaction["id"], "command": "error", "data": no})


async def test_a_bot_that_dies_of_an_item_and_asks_again_is_given_the_next(
    pg: Connection, db: Database, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "poll", delivery=ONE_EACH)
    await capture_all(pg, 3)
    async with worker(files), polling(files) as one:
        given = await one.next()
        assert given.numbers == [1]
        assert (await one.next()).body == given.body
        await bury(db)
        following = await one.next()
        assert following.numbers == [2]
        assert await one.ack(given.txn_id) == 200  # too late: it says nothing of what is in flight
        assert (await one.next()).body == following.body
        await is_set_aside(pg, files, 1, None)
        assert await one.ack(following.txn_id) == 200
        last = await one.next()
        assert last.numbers == [3]
        assert await one.ack(last.txn_id) == 200
        await sent_all(pg)
    assert await ledger(pg, "delivered") == {"to_device": 2}


async def test_a_bot_that_acknowledges_before_it_asks_again_has_taken_it(
    pg: Connection, db: Database, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "poll", delivery=ONE_EACH)
    await capture_all(pg, 2)
    async with worker(files), polling(files) as one:
        given = await one.next()
        await bury(db)
        assert await pg.fetchval(ASKED)
        assert await one.ack(given.txn_id) == 200
        assert (await one.next()).numbers == [2]
        assert (await one.next()).numbers == [2]  # what was said was not said of this one
    assert await buried(pg) == []
    assert await ledger(pg, "delivered") == {"to_device": 1}


async def test_a_word_to_split_and_then_to_bury_ends_at_the_one_item(
    pg: Connection, db: Database, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "poll", delivery={"max_items": 10})
    await capture_all(pg, 2)
    async with worker(files), polling(files) as one:
        assert (await one.next()).numbers == [1, 2]
        await operating.retry(db, "bot", by=BY, split=True)
        assert (await one.next()).numbers == [1]
        await bury(db)
        following = await one.next()
        assert following.numbers == [2]  # the other part, of which nothing was said
        assert await one.ack(following.txn_id) == 200
        await sent_all(pg)
        await is_set_aside(pg, files, 1, None)


async def test_one_user_of_whom_an_appservice_is_not_to_hear_is_set_aside_alone(
    pg: Connection, db: Database, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.answer = refuses(503, b'"@bad"')
    files = bridge(tmp_path, database, bot, **LONG)
    async with worker(files):
        await pg.execute(
            "insert into appservice_bridge.device_list_update (appservice_id, user_id, change)"
            " values ('bot', '@bad', 'changed')"
        )
        await pg.execute("notify appservice_bridge_outbox")
        await wait_until(pg, FAILED)
        await bury(db)
        await wait_until(pg, "select count(*) = 1 from appservice_bridge.dead_letter")
        await capture_all(pg, 1)
        await sent_all(pg)
    (letter,) = await buried(pg)
    assert (letter["kind"], letter["user_id"], letter["payload"]) == ("device_list", "@bad", None)
    assert letter["reason"] == "set aside by an operator"
    assert await ledger(pg, "buried") == {"device_list": 1}
    assert [json.loads(one.body).keys() for one in bot.taken] == [
        {"events", "de.sorunome.msc2409.to_device"}
    ]


async def test_killed_between_the_word_and_the_burial_it_buries_without_another_attempt(
    pg: Connection, db: Database, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.open.clear()
    files = bridge(tmp_path, database, bot)
    async with worker_process(files) as killed:
        await capture_all(pg, 2)
        await bot.until(lambda: len(bot.requests) == 1)
        await bury(db)
        await killed.kill()  # in the attempt, which is found open
        bot.open.set()
        await its_lease_ran_out(pg)
        await killed.start()
        await sent_all(pg)
        await is_set_aside(pg, files, 1, None)
    assert [numbers_of(one) for one in bot.requests] == [[1], [2]]


async def test_killed_before_the_commit_of_the_burial_it_does_the_same_again(
    pg: Connection, db: Database, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.answer = always(500)
    files = bridge(tmp_path, database, bot, **LONG)
    async with worker_process(files) as killed:
        await capture_all(pg, 2)
        await wait_until(pg, FAILED)
        async with held_at(pg, database, "insert on appservice_bridge.dead_letter"):
            await bury(db)
            await somebody_waits(pg)
            await killed.kill()
            await its_lease_ran_out(pg)
        assert await buried(pg) == []
        bot.answer = ok
        await killed.start()
        await sent_all(pg)
        await is_set_aside(pg, files, 1, None)
    assert [numbers_of(one) for one in bot.requests] == [[1], [2]]


async def test_what_follows_a_burial_begins_with_a_short_rest(
    pg: Connection, db: Database, database: str, bot: Appservice, tmp_path: Path
) -> None:
    bot.answer = always(500)
    backoff = {"first_seconds": 0.2, "ceiling_seconds": 300}
    files = bridge(tmp_path, database, bot, backoff=backoff)
    async with worker(files):
        await capture_all(pg, 2)
        await wait_until(pg, FAILED)
    await pg.execute("update appservice_bridge.lane set failed_attempts = 20, due_at = 'infinity'")
    async with worker(files):
        await wait_until(pg, "select worker_id is not null from appservice_bridge.lane")
        await bury(db)
        await bot.until(lambda: [numbers_of(one) for one in bot.requests].count([2]) >= 2)


def numbers_of(one: Request) -> list[int]:
    return numbers(one.items("de.sorunome.msc2409.to_device"))
