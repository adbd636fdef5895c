"""A lane whose appservice asks: the same seals and order, and an ack for each."""

import asyncio
import json
import time
from pathlib import Path

import pytest

from tests.support.bridge import worker, worker_process
from tests.support.command import command
from tests.support.connecting import connected, files_for, polling, wait_until
from tests.support.facts import Connection, capture, relay

BOT = "@b_1:example.org"
ACKED = "select acked_to = {} from appservice_bridge.lane"


async def test_the_next_transaction_comes_when_the_one_before_is_acknowledged(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "poll", delivery={"max_items": 2})
    seen: list[int] = []
    async with worker(files), polling(files) as bot:
        for n in range(1, 8):
            await capture(pg, BOT, n)
        await wait_until(pg, "select position = 7 from appservice_bridge.outbox_head")
        while len(seen) < 7:
            answer = await bot.next()
            again = await bot.next(0)
            assert answer.status == 200
            assert again.body == answer.body  # until it is acknowledged
            seen += answer.numbers
            assert await bot.ack(answer.txn_id) == 200
        assert (await bot.next(0)).status == 204
        assert await pg.fetchval(ACKED.format(7))
    assert seen == list(range(1, 8))


async def test_an_answer_is_the_transaction_and_its_id(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "poll")
    async with worker(files), polling(files) as bot:
        await relay(pg, "bot", "$1")
        answer = await bot.next()
    told = json.loads(answer.body)
    assert sorted(told) == ["transaction", "txn_id"]
    assert told["transaction"] == {"events": [{"event_id": "$1", "type": "m"}]}
    spliced = b'{"txn_id":"%s","transaction":{"events":[{"event_id": "$1", "type": "m"}]}}'
    assert answer.body == spliced % answer.txn_id.encode()


async def test_a_long_poll_is_answered_as_soon_as_something_comes(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "poll")
    async with worker(files), polling(files) as bot:
        asking = asyncio.create_task(bot.next(60))
        await wait_until(pg, "select worker_id is not null from appservice_bridge.lane")
        await asyncio.sleep(0.3)
        began = time.monotonic()
        await capture(pg, BOT, 1)
        assert (await asking).numbers == [1]
        assert time.monotonic() - began < 30


async def test_what_another_worker_routed_is_seen_without_a_word_from_it(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "poll")
    async with worker(files), polling(files) as bot:
        asking = asyncio.create_task(bot.next(60))
        await wait_until(pg, "select worker_id is not null from appservice_bridge.lane")
        await asyncio.sleep(0.5)  # it looked, and waits
        await pg.execute(
            """with o as (insert into appservice_bridge.outbox (appservice_id, position, kind,
                          captured_at, payload) values ('bot', 1, 'event', now(), '{"n":1}'))
               update appservice_bridge.outbox_head set position = 1"""
        )
        assert (await asyncio.wait_for(asking, 50)).status == 200


async def test_nothing_in_time_is_204_and_no_connection_to_the_database_is_held_meanwhile(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "poll")
    async with worker(files), polling(files) as bot:
        began = time.monotonic()
        asking = asyncio.create_task(bot.next(1))
        await asyncio.sleep(0.5)
        open_ones = "select count(*) from pg_stat_activity where state = 'idle in transaction'"
        assert await pg.fetchval(open_ones) == 0
        answer = await asking
        assert (answer.status, answer.body) == (204, b"")
        assert time.monotonic() - began > 0.9


async def test_an_ack_is_known_again_and_no_other_id_is(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "poll", delivery={"max_items": 1})
    async with worker(files), polling(files) as bot:
        await capture(pg, BOT, 1)
        await capture(pg, BOT, 2)
        first = (await bot.next()).txn_id
        epoch = first.rpartition("-")[0]
        for unknown in (f"{epoch}-2", f"{epoch}-01", f"{epoch}-0", "abother-1", "x", "%00"):
            assert await bot.ack(unknown) == 404
        assert await bot.ack(first) == 200
        assert await bot.ack(first) == 200
        assert await pg.fetchval(ACKED.format(1))
        assert await bot.ack(f"{epoch}-2") == 404  # not given out yet
        second = await bot.next()
        assert await bot.ack(first) == 200  # late, and not for what is in flight
        assert await pg.fetchval(ACKED.format(1))
        assert second.numbers == [2]
        assert await bot.ack(second.txn_id) == 200
    delivered = "select items from appservice_bridge.ledger where outcome = 'delivered'"
    assert await pg.fetchval(delivered) == 2


async def test_a_newer_request_ends_the_older_with_409(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "poll")
    async with worker(files), polling(files) as bot:
        older = asyncio.create_task(bot.next(60))
        await wait_until(pg, "select worker_id is not null from appservice_bridge.lane")
        newer = asyncio.create_task(bot.next(30))
        assert (await asyncio.wait_for(older, 50)).status == 409
        await capture(pg, BOT, 1)
        assert (await newer).numbers == [1]


async def test_a_newer_request_at_another_worker_ends_the_older_with_409(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    first, second = (files_for(tmp_path / name, database, "poll") for name in ("a", "b"))
    async with (
        worker(first),
        worker_process(second),
        polling(first) as bot,
        polling(second) as elsewhere,
    ):
        older = asyncio.create_task(bot.next(60))
        await wait_until(pg, "select worker_id is not null from appservice_bridge.lane")
        newer = asyncio.create_task(elsewhere.next(30))
        assert (await asyncio.wait_for(older, 50)).status == 409
        await capture(pg, BOT, 1)
        answer = await newer
        assert answer.numbers == [1]
        assert await bot.ack(answer.txn_id) == 200  # wherever it is said
        assert (await elsewhere.next(0)).status == 204


async def test_a_flood_of_requests_is_one_that_waits(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "poll")
    async with worker(files), polling(files) as bot:
        waiting = {asyncio.create_task(bot.next(60)) for _ in range(60)}
        async with asyncio.timeout(50):
            while len(waiting) > 1:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                assert {one.result().status for one in done} == {409}
        await capture(pg, BOT, 1)
        assert (await waiting.pop()).numbers == [1]


async def test_case_14_killed_between_answer_and_ack_it_gives_the_same_id_and_bytes(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "poll")
    async with worker_process(files) as killed:
        await capture(pg, BOT, 1)
        async with polling(files) as bot:
            lost = await bot.next()
        await killed.kill()
        await capture(pg, BOT, 2)  # may not slip into what is sealed
        await killed.start()
        async with polling(files) as bot:
            again = await bot.next()
            assert again.body == lost.body
            assert await bot.ack(again.txn_id) == 200
            assert (await bot.next()).numbers == [2]


async def test_a_worker_that_ends_lets_nobody_wait(
    database: str, tmp_path: Path, pg: Connection
) -> None:
    files = files_for(tmp_path, database, "poll")
    async with worker_process(files) as stopped, polling(files) as bot:
        asking = asyncio.create_task(bot.next(60))
        await wait_until(pg, "select worker_id is not null from appservice_bridge.lane")
        assert await stopped.terminate() == 0
        assert (await asking).status == 204
    assert await pg.fetchval("select worker_id is null from appservice_bridge.lane")


async def test_what_does_not_match_its_seal_is_never_given_out(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "poll")
    async with worker(files), polling(files) as bot:
        await capture(pg, BOT, 1)
        given = await bot.next()
        await pg.execute("update appservice_bridge.outbox set payload = '{}'")
        assert (await bot.next(0)).status == 503
        assert await bot.ack(given.txn_id) == 503
        assert await pg.fetchval("select last_outcome from appservice_bridge.lane") == "altered"
        assert await pg.fetchval(ACKED.format(0))


@pytest.mark.parametrize("timeout", ["-1", "", "x", "1e3", "nan", "inf", "1.", "9" * 400])
async def test_a_timeout_that_is_none_is_refused(
    database: str, tmp_path: Path, timeout: str
) -> None:
    files = files_for(tmp_path, database, "poll")
    async with worker(files), polling(files) as bot:
        answer = await bot.next(timeout)
        assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM")


async def test_who_may_not_ask_is_told_why(database: str, tmp_path: Path) -> None:
    files = files_for(tmp_path, database, "websocket")
    async with worker(files), polling(files) as bot, polling(files, "wrong") as stranger:
        assert ((await bot.next()).status, (await stranger.next()).status) == (403, 401)
        assert (await bot.ack("x"), await stranger.ack("x")) == (403, 401)
        told = json.loads((await bot.next()).body)
        assert "appservices.bot.transport to poll" in told["error"]


async def test_the_same_seal_comes_over_either_transport(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    polls = files_for(tmp_path / "poll", database, "poll")
    async with worker(polls), polling(polls) as bot:
        await capture(pg, BOT, 1)
        given = await bot.next()
    connects = files_for(tmp_path / "websocket", database, "websocket")
    async with worker(connects), connected(connects) as socket:
        await socket.until(lambda: len(socket.frames) == 1)
    assert socket.transactions[0]["txn_id"] == given.txn_id
    tail = given.body.partition(b'"transaction":')[2][1:-1].decode()
    assert socket.frames[0].endswith(tail)


async def test_what_was_acknowledged_is_kept_for_a_replay_like_any_other(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "poll", delivery={"keep_delivered_seconds": 3600})
    async with worker(files), polling(files) as bot:
        await capture(pg, BOT, 1)
        first = await bot.next()
        assert await bot.ack(first.txn_id) == 200
    kept = "select txn_id from appservice_bridge.kept"
    assert await pg.fetchval(kept) == first.txn_id


async def test_what_is_told_of_devices_grows_again_with_each_ack(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "poll")
    async with worker(files), polling(files) as bot:
        await pg.execute("update appservice_bridge.lane set updates_cap = 1")
        await pg.execute(
            "insert into appservice_bridge.device_list_update (appservice_id, user_id, change)"
            " select 'bot', '@u' || n, 'changed' from generate_series(1, 4) n"
        )
        told = []
        for _ in range(3):
            answer = await bot.next()
            lists = json.loads(answer.body)["transaction"]["org.matrix.msc3202.device_lists"]
            told.append(len(lists["changed"]))
            assert await bot.ack(answer.txn_id) == 200
    assert told == [1, 2, 1]


async def test_a_part_that_was_given_out_may_have_been_processed(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "poll")
    async with worker(files), polling(files) as bot:
        await capture(pg, BOT, 1)
        first = await bot.next()
        # As a lane over HTTP leaves it that had a definite no, and as a part begins.
        await pg.execute("update appservice_bridge.sealed set attempt_open = false")
        assert (await bot.next()).body == first.body
    known = "select attempt_open or doubtful from appservice_bridge.sealed"
    assert await pg.fetchval(known)


async def test_what_an_operator_wants_split_is_given_out_in_parts(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "poll")
    async with worker(files), polling(files) as bot:
        for n in range(1, 5):
            await capture(pg, BOT, n)
        await wait_until(pg, "select position = 4 from appservice_bridge.outbox_head")
        whole = await bot.next()
        assert whole.numbers == [1, 2, 3, 4]
        code, _, _ = await command("retry", "bot", "--split", "--config", str(files.config))
        assert code == 0
        parts = []
        for _ in range(2):
            parts.append(await bot.next())
            assert (await bot.next()).body == parts[-1].body
            assert await bot.ack(parts[-1].txn_id) == 200
        assert [part.numbers for part in parts] == [[1, 2], [3, 4]]
        assert len({whole.txn_id, *(part.txn_id for part in parts)}) == 3
        assert (await bot.next(0)).status == 204
        assert await pg.fetchval(ACKED.format(4))
    suspect = "select items from appservice_bridge.ledger where outcome = 'suspect'"
    assert await pg.fetchval(suspect) == 1
