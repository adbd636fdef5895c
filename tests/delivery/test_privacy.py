"""P10: what was acknowledged is in no table of ours any more, and kept only as long as was said."""

import asyncio
import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.appservice import appservice
from tests.support.bridge import registration, worker, write_files
from tests.support.facts import Connection, capture, message, where_it_is
from tests.support.relaying import homeserver

BOT: Final = "@b_1:example.org"
CANARY: Final = "canary-7f3a"
LONG: Final = CANARY + "x" * 20_000  # so long that it is stored out of line


async def gone(pg: Connection) -> None:
    async with asyncio.timeout(60):
        while await where_it_is(pg, CANARY):
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("keep", [0, 3600])
async def test_a_payload_is_in_no_table_once_it_is_acknowledged_and_its_time_is_over(
    pg: Connection, database: str, tmp_path: Path, keep: float
) -> None:
    async with appservice() as bot:
        bot.answer = lambda _: (500, {}, b"{}")
        files = write_files(
            tmp_path,
            database,
            [registration("bot", bot.url, users=["@b_.*"])],
            delivery={"keep_delivered_seconds": keep},
        )
        for n, text in enumerate((CANARY, LONG), start=1):
            await capture(pg, BOT, n, message(text=text).encode())
        assert await where_it_is(pg, CANARY) == {"capture_log.body"}
        async with worker(files), homeserver(files) as one:
            body: dict[str, Any] = {
                "events": [{"event_id": f"${CANARY}", "type": "m", "content": {"a": LONG}}],
                "de.sorunome.msc2409.ephemeral": [{"type": "m.receipt", "content": {"a": LONG}}],
            }
            assert await one.push("1", json.dumps(body).encode()) == 200
            await bot.until(lambda: len(bot.requests) >= 3)
            assert "outbox.payload" in await where_it_is(pg, CANARY)
            bot.answer = lambda _: (200, {}, b"{}")
            await bot.until(lambda: len(bot.events) == 1)
            if keep:
                await asyncio.sleep(3)  # longer than the purge waits
                assert await where_it_is(pg, CANARY) == {"outbox.payload"}
                await pg.execute(
                    "update appservice_bridge.kept set acked_at = acked_at - interval '1 hour'"
                )
            await gone(pg)
    assert len(bot.to_device) == 2
    assert await where_it_is(pg, CANARY) == set()
    await pg.execute("vacuum appservice_bridge.outbox, appservice_bridge.capture_log")
    assert await toasted(pg) == 0


async def toasted(pg: Connection) -> int:
    """Chunks of values that are stored out of line, of outbox and log."""
    tables = await pg.fetch(
        "select reltoastrelid::regclass::text as toast from pg_class"
        " where oid in ('appservice_bridge.outbox'::regclass,"
        "               'appservice_bridge.capture_log'::regclass)"
    )
    return sum([await pg.fetchval(f"select count(*) from {row['toast']}") for row in tables])
