"""A writer of Synapse's device_inbox, whose commits may be cut at any place.

Beside the rows it commits how far it is in a table of its own, so that after a commit whose answer
was lost it knows whether that happened. It is no table of the bridge's.
"""

import asyncio
import json
import random
from typing import Final

import asyncpg

from tests.faults.streams import message, user_of
from tests.support.facts import Connection

MAKE: Final = "create table public.fault_sent (stream text primary key, last bigint not null)"
SEQUENCE: Final = "create sequence public.fault_stream_ids"
HOW_FAR: Final = "select last from public.fault_sent where stream = $1 for update"
MARK: Final = """
insert into public.fault_sent values ($1, $2)
on conflict (stream) do update set last = excluded.last
"""
# A server that dies in the midst of an answer makes the driver doubt itself.
CUT: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
INSERT: Final = """
insert into public.device_inbox (user_id, device_id, stream_id, message_json)
select $1, 'DEV', nextval('public.fault_stream_ids'), body
  from unnest($2::text[]) with ordinality m (body, place) order by place
"""


async def prepare(pg: Connection) -> None:
    await pg.execute(MAKE)
    await pg.execute(SEQUENCE)


class Capture:
    """One stream's writer, on a connection of its own."""

    def __init__(self, database: str, stream: str) -> None:
        self._database = database
        self._stream = stream
        self._pg: Connection | None = None

    async def insert(self, first: int, last: int) -> None:
        """Until it is certain that these numbers were committed."""
        while True:
            try:
                if await self._inserted(first, last):
                    return
            except CUT:
                if self._pg is not None:
                    self._pg.terminate()
                    self._pg = None
            await asyncio.sleep(random.uniform(0.05, 0.3))

    async def _inserted(self, first: int, last: int) -> bool:
        if self._pg is None:
            self._pg = await asyncpg.connect(self._database, timeout=5, command_timeout=20)
        async with self._pg.transaction(isolation="repeatable_read"):
            known = await self._pg.fetchval(HOW_FAR, self._stream)
            if known is not None and known >= last:
                return True
            bodies = [_as_synapse_writes_it(self._stream, n) for n in range(first, last + 1)]
            await self._pg.execute(INSERT, user_of(self._stream), bodies)
            await self._pg.execute(MARK, self._stream, last)
        return True


def _as_synapse_writes_it(stream: str, number: int) -> str:
    return json.dumps(message(stream, number), separators=(",", ":"))
