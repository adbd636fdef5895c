"""Typing and presence have a time to live; nothing else has, and nothing that is sealed changes."""

import asyncio
import json
from pathlib import Path
from typing import Any, Final

import pytest

from appservice_bridge.delivery import sealing
from appservice_bridge.delivery.purge import purge_once
from appservice_bridge.storage import outbox
from appservice_bridge.storage.database import Database
from tests.support.appservice import appservice
from tests.support.bridge import registration, worker, write_files
from tests.support.facts import Connection, capture, message, relay

BOT: Final = "@b_1:example.org"
CAPTURE: Final = """
insert into appservice_bridge.capture_log (kind, appservice_id, body, captured_at)
values ('ephemeral', 'bot', $1, clock_timestamp() - make_interval(secs => $2))
"""
EXPIRED: Final = """
select coalesce(sum(items), 0)::int from appservice_bridge.ledger
 where appservice_id = 'bot' and kind = 'ephemeral' and outcome = 'expired'
"""
WAITING_BYTES: Final = """
select h.bytes_in - l.bytes_out from appservice_bridge.outbox_head h
  join appservice_bridge.lane l using (appservice_id)
"""


async def say(pg: Connection, type_: str, *, ago: float) -> None:
    """An ephemeral event that came so many seconds ago."""
    body = json.dumps({"type": type_, "room_id": f"!{ago}", "content": {}})
    await pg.execute(CAPTURE, body.encode(), ago)


async def told(
    pg: Connection, directory: Path, database: str, **settings: Any
) -> list[tuple[str, float]]:
    """Type and age of each ephemeral event that arrives before a room event that came last."""
    await relay(pg, "bot", "$last")
    async with appservice() as bot:
        files = write_files(directory, database, [registration("bot", bot.url)], **settings)
        async with worker(files):
            await bot.until(lambda: len(bot.events) == 1)
            await asyncio.sleep(0)
    return [(one["type"], float(one["room_id"][1:])) for one in bot.items("ephemeral")]


async def test_typing_after_a_minute_and_presence_after_five_are_not_told_and_are_counted(
    pg: Connection, db: Database, database: str, tmp_path: Path
) -> None:
    for type_ in ("m.typing", "m.presence"):
        for ago in (3600, 310, 290, 70, 10):
            await say(pg, type_, ago=ago)
    assert await told(pg, tmp_path, database) == [
        ("m.typing", 10.0),
        ("m.presence", 290.0),
        ("m.presence", 70.0),
        ("m.presence", 10.0),
    ]
    assert await pg.fetchval(EXPIRED) == 6
    await purge_once(db, asyncio.Event())
    assert await pg.fetchval(WAITING_BYTES) == 0


async def test_nothing_else_ever_grows_too_old(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    for type_ in ("m.receipt", "m.unknown", "m.typing "):
        await say(pg, type_, ago=86_400 * 365)
    await pg.execute(CAPTURE, b'{"type": 5, "room_id": "!1"}', 86_400)
    await capture(pg, BOT, 1, message(type="m.typing").encode())
    await pg.execute("update appservice_bridge.capture_log set captured_at = 'epoch'")
    await relay(pg, "bot", "$last")
    async with appservice() as bot:
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with worker(files):
            await bot.until(lambda: len(bot.events) == 1)
    assert len(bot.items("ephemeral")) == 4
    assert len(bot.to_device) == 1
    assert await pg.fetchval(EXPIRED) == 0


async def test_where_the_config_says_0_nothing_expires(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    await say(pg, "m.typing", ago=1e6)
    await say(pg, "m.presence", ago=1e6)
    delivery = {"expire": {"typing_seconds": 0}}
    assert await told(pg, tmp_path, database, delivery=delivery) == [("m.typing", 1e6)]


async def test_rule_7_what_is_sealed_does_not_change_when_it_grows_old(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    await say(pg, "m.typing", ago=0)
    async with appservice() as bot:
        bot.answer = lambda _: (500, {}, b"")
        files = write_files(tmp_path, database, [registration("bot", bot.url)])
        async with worker(files):
            await bot.until(lambda: len(bot.requests) == 1)
        await pg.execute("update appservice_bridge.outbox set captured_at = 'epoch'")
        bot.answer = lambda _: (200, {}, b"{}")
        async with worker(files):
            await bot.until(lambda: len(bot.taken) == 1)
    assert len({request.body for request in bot.requests}) == 1
    assert len(bot.items("ephemeral")) == 1
    assert await pg.fetchval(EXPIRED) == 0


async def test_where_all_that_waits_is_too_old_the_lane_steps_over_it_without_a_request(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    for _ in range(50):
        await say(pg, "m.typing", ago=100)
    async with appservice() as bot:
        files = write_files(
            tmp_path, database, [registration("bot", bot.url)], delivery={"max_items": 7}
        )
        async with worker(files), asyncio.timeout(60):
            while await pg.fetchval(EXPIRED) < 50:
                await asyncio.sleep(0.05)
            await relay(pg, "bot", "$last")
            await bot.until(lambda: len(bot.events) == 1)
    assert len(bot.requests) == 1


async def test_where_nothing_is_too_old_nothing_is_asked_of_the_database(
    pg: Connection, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    async def noted(*of: object) -> None:
        asked.append(of)

    monkeypatch.setattr(outbox, "drop", noted)
    await say(pg, "m.typing", ago=1)
    assert await told(pg, tmp_path, database) == [("m.typing", 1.0)]
    assert asked == []


async def test_a_lane_is_held_for_a_part_of_what_is_not_told_and_comes_to_the_end(
    pg: Connection, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "MOST_SKIPPED", 4)
    for _ in range(10):
        await say(pg, "m.typing", ago=3600)
    await pg.execute(
        """create table public.looks as select pg_current_xact_id() as id, 0::bigint as upto
             with no data;
           create function public.noted() returns trigger language plpgsql as
           $$ begin
                insert into public.looks values (pg_current_xact_id(), new.acked_to);
                return null;
              end $$;
           create trigger noted after update of acked_to on appservice_bridge.lane
             for each row execute function public.noted()"""
    )
    assert await told(pg, tmp_path, database, delivery={"max_items": 2}) == []
    looks = "select max(upto) as upto from public.looks group by id order by 1 limit 2"
    assert [row["upto"] for row in await pg.fetch(looks)] == [4, 8]
    assert await pg.fetchval(EXPIRED) == 10
