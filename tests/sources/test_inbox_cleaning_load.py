"""The cleaner beside Synapse's own DB transactions: none of them fails or waits for long."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import asyncpg
import pytest

from appservice_bridge.routing.intake import Intake
from appservice_bridge.sources.inbox_cleaner import InboxCleaner
from appservice_bridge.storage import inbox_cleaning
from appservice_bridge.storage.database import Database, DatabaseUnavailableError, connect
from tests.support.delivered import add_device, delivered
from tests.support.facts import Connection, attach, send
from tests.support.plans import MODES, planned

SYNAPSE_TRIES: Final = 5  # of one DB transaction that could not be serialized


class Homeserver:
    """DB transactions as Synapse makes them, tried again as it does; their errors are counted."""

    def __init__(self, database: str) -> None:
        self.database = database
        self.errors: Counter[str] = Counter()
        self.given_up = 0
        self.slowest = 0.0
        self.done = 0

    async def repeat(
        self, work: Callable[[Connection], Awaitable[None]], stop: asyncio.Event
    ) -> None:
        conn = await asyncpg.connect(self.database)
        while not stop.is_set():
            await self._once(conn, work)
            self.done += 1
            await asyncio.sleep(0.002)
        await conn.close()

    async def _once(self, conn: Connection, work: Callable[[Connection], Awaitable[None]]) -> None:
        for _ in range(SYNAPSE_TRIES):
            began = time.monotonic()
            try:
                async with conn.transaction(isolation="repeatable_read"):
                    await work(conn)
            except asyncpg.PostgresError as error:
                self.errors[str(error.sqlstate)] += 1
            else:
                return
            finally:
                self.slowest = max(self.slowest, time.monotonic() - began)
        self.given_up += 1


DELETE_BETWEEN: Final = """
delete from public.device_inbox
 where user_id = $1 and device_id = 'DEV' and stream_id > 0 and stream_id <= $2
"""


async def run_beside(
    pg: Connection, database: str, cleaner: InboxCleaner, readers: list[str]
) -> tuple[Homeserver, int]:
    """Four writers and two who sync as half of these users each, beside the cleaner, for 2 s."""
    homeserver = Homeserver(database)
    last = await pg.fetchval("select max(stream_id) from public.device_inbox")
    numbers = iter(range(last + 1, 10**9))

    async def write(conn: Connection) -> None:
        n = next(numbers)
        for user in random.sample(range(1, 41), 5):
            await send(conn, f"@b_{user}:example.org", n)

    def syncing(users: list[str]) -> Callable[[Connection], Awaitable[None]]:
        async def sync(conn: Connection) -> None:
            await conn.execute(DELETE_BETWEEN, random.choice(users), last)

        return sync

    stop, cleaned = asyncio.Event(), 0
    async with asyncio.TaskGroup() as group:
        for work in (*[write] * 4, syncing(readers[::2]), syncing(readers[1::2])):
            group.create_task(homeserver.repeat(work, stop))
        for _ in range(20):
            try:
                cleaned += await cleaner.clean_once()
            except DatabaseUnavailableError:
                cleaned += 0  # it gave way
            await asyncio.sleep(0.1)
        stop.set()
    return homeserver, cleaned


async def fill_inbox(pg: Connection, db: Database, intake: Intake, each: int) -> None:
    """Delivered messages of 40 devices."""
    await attach(pg)
    for user in range(1, 41):
        await add_device(pg, f"@b_{user}:example.org")
    await pg.execute(
        "insert into public.device_inbox (user_id, device_id, stream_id, message_json)"
        " select '@b_' || u || ':example.org', 'DEV', n, $1"
        " from generate_series(1, 40) u, generate_series(1, $2::int) n",
        json.dumps({"content": {}, "type": "m", "sender": "@a:example.org"}),
        each,
    )
    await delivered(pg, db, intake, "bot")


async def test_beside_the_homeserver_s_writers_and_other_devices_syncs_nothing_of_it_fails(
    pg: Connection, database: str, db: Database, intake: Intake, cleaner: InboxCleaner
) -> None:
    await fill_inbox(pg, db, intake, 100)
    syncing = [f"@b_{user}:example.org" for user in range(1, 9)]
    await pg.execute(
        "delete from public.device_inbox where stream_id = 1 and user_id = any($1)", syncing
    )
    homeserver, cleaned = await run_beside(pg, database, cleaner, syncing)
    assert (homeserver.errors, homeserver.given_up) == (Counter(), 0)
    assert cleaned == 32 * 100
    assert homeserver.done > 50
    assert homeserver.slowest < 10


async def test_even_in_a_race_for_the_same_rows_the_homeserver_gives_up_nothing(
    pg: Connection, database: str, db: Database, intake: Intake, cleaner: InboxCleaner
) -> None:
    await fill_inbox(pg, db, intake, 100)
    everyone = [f"@b_{user}:example.org" for user in range(1, 41)]
    homeserver, _ = await run_beside(pg, database, cleaner, everyone)
    assert homeserver.given_up == 0
    assert set(homeserver.errors) <= {"40001"}
    assert homeserver.slowest < 10


@pytest.mark.parametrize("mode", MODES)
async def test_rows_are_found_by_the_inbox_s_index_also_after_much_of_it_was_cleaned(
    pg: Connection, database: str, mode: str
) -> None:
    await attach(pg)
    await pg.execute("alter table public.device_inbox disable trigger user")
    rows = (
        "insert into public.device_inbox (user_id, device_id, stream_id, message_json)"
        " select '@b_' || n % 100 || ':example.org', 'DEV', n, '{}'"
        " from generate_series(1, 50000) n"
    )
    await pg.execute(rows)
    await pg.execute("delete from public.device_inbox where stream_id < 50000")
    await pg.execute("vacuum analyze public.device_inbox")
    await pg.execute(rows)
    conn = await connect(database)
    key = "'@b_7:example.org', 'DEV', '{7,107,207,307,407,507,607,707,807,907}'"
    _, scan = await planned(conn, inbox_cleaning.CLEAN, key, mode)
    await conn.close()
    assert scan["Node Type"].startswith("Index")
    assert scan["Actual Rows"] == 10
    assert scan.get("Rows Removed by Filter", 0) < 1000
