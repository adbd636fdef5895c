"""A batch that may have been taken and forgotten is not taken again."""

from pathlib import Path
from typing import Any, Final

import pytest

from appservice_bridge.http.batch import MAX_AGE_DAYS, MAX_AHEAD_SECONDS
from appservice_bridge.storage.repeats import KEEP_DAYS
from tests.support.facts import Connection
from tests.support.ingesting import message, now_ms, one_bot

BATCHES: Final = "select count(*) from appservice_bridge.ingest_batch"
CAPTURED: Final = "select count(*) from appservice_bridge.capture_log"
DAY_MS: Final = 86_400_000
MINUTE_MS: Final = 60_000


def test_what_is_forgotten_is_too_old_to_be_taken_also_if_it_came_from_the_future() -> None:
    assert MAX_AGE_DAYS * 86_400 + MAX_AHEAD_SECONDS < KEEP_DAYS * 86_400


@pytest.mark.parametrize(
    ("made", "errcode"),
    [
        (None, "M_BAD_JSON"),
        ("1795338000000", "M_BAD_JSON"),
        (True, "M_BAD_JSON"),
        (1.5, "M_BAD_JSON"),
        (-1, "M_INVALID_PARAM"),
        (2**53, "M_INVALID_PARAM"),
        (2**64, "M_INVALID_PARAM"),
        (0, "M_INVALID_PARAM"),
    ],
)
async def test_a_batch_without_a_time_is_refused_whole(
    pg: Connection, database: str, tmp_path: Path, made: Any, errcode: str
) -> None:
    async with one_bot(tmp_path, database) as (_, hs):
        taken = await hs.send("1", message(), origin_server_ts=made)
        assert taken.refusal == (400, errcode)
        assert "origin_server_ts" in taken.body["error"]
    assert (await pg.fetchval(CAPTURED), await pg.fetchval(BATCHES)) == (0, 0)


async def test_a_batch_of_another_time_is_refused_whole_and_says_so(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    ago = (400, "M_INVALID_PARAM")
    others = {-29 * DAY_MS - MINUTE_MS: ago, -31 * DAY_MS: ago, 6 * MINUTE_MS: (503, "M_UNKNOWN")}
    async with one_bot(tmp_path, database) as (bot, hs):
        for distance_ms, refusal in others.items():
            taken = await hs.send("1", message(1), origin_server_ts=now_ms() + distance_ms)
            assert taken.refusal == refusal
            assert ("ahead" if distance_ms > 0 else "ago") in taken.body["error"]
        assert (await pg.fetchval(CAPTURED), await pg.fetchval(BATCHES)) == (0, 0)
        for n, distance_ms in enumerate((MINUTE_MS - 29 * DAY_MS, 4 * MINUTE_MS), start=1):
            taken = await hs.send(str(n), message(n), origin_server_ts=now_ms() + distance_ms)
            assert taken.verdicts == ["accepted"]
        await bot.until(lambda: len(bot.to_device) == 2)
    assert [item["content"]["n"] for item in bot.to_device] == [1, 2]


async def test_a_batch_that_is_known_is_answered_whenever_it_was_signed(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (bot, hs):
        first = await hs.send("1", message(1), message(2, content=[]))
        for distance_ms in (-40 * DAY_MS, MINUTE_MS, 40 * DAY_MS):
            made = now_ms() + distance_ms
            taken = await hs.send("1", message(1), message(2, content=[]), origin_server_ts=made)
            assert taken.raw == first.raw
        await pg.execute("delete from appservice_bridge.ingest_batch")
        late = await hs.send("1", message(1), origin_server_ts=now_ms() - 40 * DAY_MS)
        assert late.refusal == (400, "M_INVALID_PARAM")
        await hs.send("2", message(9))
        await bot.until(lambda: len(bot.to_device) >= 2)
    assert [item["content"]["n"] for item in bot.to_device] == [1, 9]
