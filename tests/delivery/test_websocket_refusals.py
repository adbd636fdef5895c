"""What an appservice will not take over a websocket: found as over HTTP, where it says so."""

import asyncio
from pathlib import Path

from tests.support.bridge import worker
from tests.support.connecting import Socket, connected, files_for, numbers_in, wait_until
from tests.support.facts import Connection, capture

BOT = "@b_1:example.org"
BURIED = "select count(*) = 1 from appservice_bridge.dead_letter"


async def answer(bot: Socket, code: str, poison: int) -> list[int]:
    """Take what has no poison in it, and refuse what has; returns what was taken."""
    taken: list[int] = []
    while 6 not in taken:
        transaction = await bot.next()
        if poison in numbers_in(transaction):
            no = {"code": code, "message": "no"}
            await bot.say({"id": transaction["id"], "command": "error", "data": no})
        else:
            taken += numbers_in(transaction)
            await bot.ack(transaction)
    return taken


async def test_one_item_that_is_refused_is_found_and_everything_else_is_delivered_in_order(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    quick = {"backoff": {"first_seconds": 0.02, "ceiling_seconds": 0.05}}
    files = files_for(tmp_path, database, "websocket", delivery=quick)
    for n in range(1, 7):
        await capture(pg, BOT, n)
    async with worker(files), connected(files, answers=False) as bot, asyncio.timeout(60):
        assert await answer(bot, "M_BAD_JSON", 3) == [1, 2, 4, 5, 6]
        await wait_until(pg, BURIED)
    letter = await pg.fetchrow(
        "select status, errcode, stream_id from appservice_bridge.dead_letter"
    )
    assert tuple(letter or ()) == (400, "M_BAD_JSON", 3)
