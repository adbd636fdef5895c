"""Several workers on one database, each a process of its own, and who holds which lanes."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.appservice import Appservice
from tests.support.bridge import WorkerProcess, worker_process, write_files
from tests.support.facts import Connection

HOLDERS = """
select w.name, l.appservice_id, l.lease_token
  from appservice_bridge.lane l join appservice_bridge.worker w using (worker_id)
 where w.alive_until > clock_timestamp()
"""


@asynccontextmanager
async def workers(
    directory: Path, databases: Sequence[str], ours: Sequence[dict[str, Any]], **settings: Any
) -> AsyncIterator[list[WorkerProcess]]:
    """A worker for each DSN, which may lead to the same database."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                worker_process(write_files(directory / str(n), database, ours, **settings))
            )
            for n, database in enumerate(databases)
        ]


def pid(worker: WorkerProcess) -> int:
    assert worker.process is not None
    return worker.process.pid


async def held(pg: Connection) -> Counter[int]:
    """How many lanes each live worker holds, by its process."""
    return Counter(int(row["name"].rsplit(":", 1)[1]) for row in await pg.fetch(HOLDERS))


async def tokens(pg: Connection) -> dict[str, int]:
    """The fencing token of every lane that is held."""
    return {row["appservice_id"]: row["lease_token"] for row in await pg.fetch(HOLDERS)}


async def until_held(
    pg: Connection, condition: Callable[[Counter[int]], bool], *, within: float = 60.0
) -> float:
    """Wait for lanes to be held in some way; returns the seconds that took."""
    clock = asyncio.get_running_loop().time
    began = clock()
    async with asyncio.timeout(within):
        while not condition(await held(pg)):
            await asyncio.sleep(0.02)
    return clock() - began


def once_and_in_order(bot: Appservice, facts: int) -> bool:
    """Whether each message came once and in order, and no transaction ever changed."""
    bodies = {(request.txn_id, request.body) for request in bot.requests}
    unaltered = len(bodies) == len({txn_id for txn_id, _ in bodies})
    return unaltered and [item["content"]["n"] for item in bot.to_device] == list(
        range(1, facts + 1)
    )
