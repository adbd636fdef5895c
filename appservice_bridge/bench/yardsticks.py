"""What the bridge is compared with, each a process of its own: `python -m … naive|ceiling PLAN`.

`naive` is the outbox that one would write first: rows are claimed with SKIP LOCKED, a hundred at a
time as Synapse sends them, parsed, put into a body by json.dumps, PUT, and deleted in the same DB
transaction. `ceiling` is the least that any sender of these bytes does: it reads a range of the
bridge's own outbox, splices, PUTs, and forgets where it was; it writes nothing. Both have a loop
for each appservice, share connections, and run on uvloop.
"""

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import aiohttp
import uvloop

from appservice_bridge.storage.database import Connection, connect

CONNECTIONS: Final = 8
NAIVE_BATCH: Final = 100
CEILING_BATCH: Final = 890  # of 1 KB: as many as fit the bridge's own transactions
NAIVE_POLL_SECONDS: Final = 1.0  # beside the wake-up
CEILING_POLL_SECONDS: Final = 0.005

CLAIM: Final = """
-- bench.naive_claim
select id, payload from naive.outbox where appservice_id = $1
 order by id limit $2 for update skip locked
"""

DELETE: Final = """
-- bench.naive_delete
delete from naive.outbox where id = any($1::bigint[])
"""

READ: Final = """
-- bench.ceiling_read
select position, payload from outbox where appservice_id = $1 and position > $2
 order by position limit $3
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a yardstick is told; the file holds a password.

    Attributes:
        urls: of each appservice, by its id.
    """

    dsn: str
    urls: Mapping[str, str]


class Loops:
    """Connections and a session that the loops of all appservices share."""

    def __init__(self, plan: Plan, session: aiohttp.ClientSession) -> None:
        self.plan = plan
        self._session = session
        self._free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        self._numbers = itertools.count(1)

    @classmethod
    @asynccontextmanager
    async def open(cls, plan: Plan) -> AsyncIterator[Self]:
        """Connect, and close everything at the end."""
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            AsyncExitStack() as stack,
        ):
            loops = cls(plan, session)
            for _ in range(min(CONNECTIONS, len(plan.urls))):
                conn = await connect(plan.dsn)
                stack.push_async_callback(conn.close)
                loops._free.put_nowait(conn)
            yield loops

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """One of the connections, as soon as one is free."""
        conn = await self._free.get()
        try:
            yield conn
        finally:
            self._free.put_nowait(conn)

    async def put(self, appservice_id: str, body: bytes) -> bool:
        """Send a transaction; whether it was taken."""
        number = next(self._numbers)
        url = f"{self.plan.urls[appservice_id]}/_matrix/app/v1/transactions/{number}"
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.put(url, data=body, headers=headers) as answer:
                await answer.read()
                return answer.status == 200
        except aiohttp.ClientError:
            return False


async def naive(loops: Loops) -> None:
    """Deliver what is in the naive outbox, for ever."""
    wakes = {appservice_id: asyncio.Event() for appservice_id in loops.plan.urls}
    listener = await connect(loops.plan.dsn)
    await listener.add_listener("naive_outbox", lambda *heard: wakes[str(heard[-1])].set())
    await _each(loops, lambda appservice_id: _naive_lane(loops, appservice_id, wakes))


async def _naive_lane(loops: Loops, appservice_id: str, wakes: Mapping[str, asyncio.Event]) -> None:
    wake = wakes[appservice_id]
    while True:
        wake.clear()
        async with loops.connection() as conn, conn.transaction():
            rows = await conn.fetch(CLAIM, appservice_id, NAIVE_BATCH)
            if rows:
                messages = [json.loads(row["payload"]) for row in rows]
                body = {"events": [], "de.sorunome.msc2409.to_device": messages}
                if await loops.put(appservice_id, json.dumps(body).encode()):
                    await conn.execute(DELETE, [row["id"] for row in rows])
        if not rows:
            await _set_or(wake, NAIVE_POLL_SECONDS)


async def _set_or(wake: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await wake.wait()
    except TimeoutError:
        return


async def ceiling(loops: Loops) -> None:
    """Send what is in the outboxes, once, and what is appended, for ever."""
    await _each(loops, lambda appservice_id: _ceiling_lane(loops, appservice_id))


async def _ceiling_lane(loops: Loops, appservice_id: str) -> None:
    sent_to = 0
    while True:
        async with loops.connection() as conn:
            rows = await conn.fetch(READ, appservice_id, sent_to, CEILING_BATCH)
        if not rows:
            await asyncio.sleep(CEILING_POLL_SECONDS)
            continue
        items = b",".join([row["payload"] for row in rows])
        body = b'{"events":[],"de.sorunome.msc2409.to_device":[' + items + b"]}"
        if await loops.put(appservice_id, body):
            sent_to = rows[-1]["position"]


async def _each(loops: Loops, lane: Callable[[str], Awaitable[None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for appservice_id in loops.plan.urls:
            group.create_task(lane(appservice_id))  # type: ignore[arg-type]


async def _run(kind: str, plan: Plan) -> None:
    async with Loops.open(plan) as loops:
        await (naive if kind == "naive" else ceiling)(loops)


if __name__ == "__main__":
    uvloop.run(_run(sys.argv[1], Plan(**json.loads(Path(sys.argv[2]).read_text()))))
