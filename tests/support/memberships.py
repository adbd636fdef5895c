"""Memberships written as Synapse writes them: one room per commit, under one id of its stream."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from appservice_bridge.domain.owners import Owners
from appservice_bridge.routing.announcing import announce, go_live
from appservice_bridge.routing.following import begin_following
from appservice_bridge.routing.seeding import Seeded, Seeding
from appservice_bridge.storage.database import Database
from tests.support.facts import Connection, make_synapse_tables

# As `_update_current_state_txn` in synapse/storage/databases/main/events.py.
DELTA = """
insert into public.current_state_delta_stream (stream_id, room_id, type, state_key, event_id,
                                               prev_event_id)
select $1, $2, 'm.room.member', $3, $4,
       (select event_id from public.current_state_events
         where room_id = $2 and type = 'm.room.member' and state_key = $3)
"""
REMOVE = """
delete from public.current_state_events
 where room_id = $1 and type = 'm.room.member' and state_key = $2
"""
EMPTY_DELTAS = """
insert into public.current_state_delta_stream (stream_id, room_id, type, state_key, prev_event_id)
select $1, room_id, type, state_key, event_id from public.current_state_events where room_id = $2
"""
POSITION = """
insert into public.stream_positions values ('events', $1, $2)
on conflict (stream_name, instance_name) do update set stream_id = excluded.stream_id
"""


@dataclass(slots=True)
class Memberships:
    """The homeserver's side: every change takes the next id, and the position follows."""

    pg: Connection
    dsn: str
    last_id: int = 0
    unfinished: set[int] = field(default_factory=set)

    async def change(self, room_id: str, **memberships: str) -> int:
        """Change memberships of a room in one commit; users by localpart, `_at_` is another server.

        `join`, `leave`, `ban`, `invite` and `knock` as they are.
        """
        await self._register(memberships)
        async with self.pg.transaction():
            stream_id = self._next_id()
            await write(self.pg, stream_id, room_id, memberships)
        await self._finish(stream_id)
        return stream_id

    async def server_leaves(self, room_id: str) -> int:
        """The last local user is gone: all state is forgotten, and the stream says so."""
        async with self.pg.transaction():
            stream_id = self._next_id()
            await self.pg.execute(EMPTY_DELTAS, stream_id, room_id)
            await self.pg.execute(
                "delete from public.current_state_events where room_id = $1", room_id
            )
        await self._finish(stream_id)
        return stream_id

    @asynccontextmanager
    async def late(self, room_id: str, **memberships: str) -> AsyncIterator[None]:
        """A change that draws its id now and is committed when the context ends."""
        await self._register(memberships)
        stream_id = self._next_id()
        conn = await asyncpg.connect(self.dsn)
        try:
            async with conn.transaction():
                await write(conn, stream_id, room_id, memberships)
                yield
            await self._finish(stream_id)
        finally:
            await conn.close()

    async def position(self, writer: str, stream_id: int) -> None:
        """What a writer of events says about how far it is."""
        await self.pg.execute(POSITION, writer, stream_id)

    async def _register(self, names: Iterable[str]) -> None:
        await self.pg.execute(
            "insert into public.users (name) select unnest($1::text[]) on conflict do nothing",
            [user(name) for name in names if "_at_" not in name],
        )

    def _next_id(self) -> int:
        self.last_id += 1
        self.unfinished.add(self.last_id)
        return self.last_id

    async def _finish(self, stream_id: int) -> None:
        self.unfinished.discard(stream_id)
        await self.position("master", min(self.unfinished, default=self.last_id + 1) - 1)


async def write(
    conn: Connection, stream_id: int, room_id: str, memberships: dict[str, str]
) -> None:
    for name, membership in memberships.items():
        user_id, event_id = user(name), f"${stream_id}{name}"
        await conn.execute(
            "insert into public.room_memberships (event_id, user_id, sender, room_id, membership)"
            " values ($1, $2, $2, $3, $4)",
            *(event_id, user_id, room_id, membership),
        )
        await conn.execute(DELTA, stream_id, room_id, user_id, event_id)
        await conn.execute(REMOVE, room_id, user_id)
        await conn.execute(
            "insert into public.current_state_events (event_id, room_id, type, state_key,"
            " membership) values ($1, $2, 'm.room.member', $3, $4)",
            *(event_id, room_id, user_id, membership),
        )


def user(name: str) -> str:
    """@name:example.org; of @name:other.org is written name_at_other."""
    localpart, _, server = name.partition("_at_")
    return f"@{localpart}:{server or 'example'}.org"


async def memberships(pg: Connection, dsn: str) -> Memberships:
    """Synapse's tables, with nobody in any room."""
    await make_synapse_tables(pg)
    made = Memberships(pg, dsn)
    await made.position("master", 0)
    return made


async def begin(db: Database, owners: Owners) -> Seeded:
    """What the start of a worker does; returns what the appservices that are new to it are told."""
    await begin_following(db)
    waiting = await announce(db, owners, epoch="test")
    seeded = await Seeding(db, owners, waiting).run()
    await go_live(db, waiting)
    return seeded


async def told(pg: Connection, appservice_id: str = "bot") -> dict[str, str]:
    """What waits for an appservice, by localpart; it is taken."""
    rows = await pg.fetch(
        "delete from appservice_bridge.device_list_update where appservice_id = $1"
        " returning user_id, change",
        appservice_id,
    )
    return {short(row["user_id"]): row["change"] for row in rows}


async def tracked(pg: Connection, appservice_id: str = "bot") -> set[str]:
    """Whom an appservice was told about, by localpart."""
    rows = await pg.fetch(
        "select user_id from appservice_bridge.tracked where appservice_id = $1", appservice_id
    )
    return {short(row["user_id"]) for row in rows}


async def residents(pg: Connection, appservice_id: str = "bot") -> set[tuple[str, str]]:
    """In which rooms its users are, by localpart."""
    rows: list[Any] = await pg.fetch(
        "select room_id, user_id from appservice_bridge.resident where appservice_id = $1",
        appservice_id,
    )
    return {(row["room_id"], short(row["user_id"])) for row in rows}


def short(user_id: str) -> str:
    """The inverse of `user`."""
    localpart, _, server = user_id[1:].removesuffix(".org").partition(":")
    return localpart if server == "example" else f"{localpart}_at_{server}"
