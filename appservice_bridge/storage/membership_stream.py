"""Synapse's stream of memberships, followed from outside by position; it says where to look."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from appservice_bridge.storage.database import Connection

# Where the bound lags, so many followed ids are remembered, and so many rows are looked at again.
MOST_RECENT: Final = 10_000
# Longer than a writer of Synapse's takes from drawing its id to its commit.
SETTLE_SECONDS: Final = 60.0

CREATE_CURSOR: Final = """
-- membership_stream.create_cursor: from the bound on; where it lags, from the latest rows on
insert into membership_cursor (settled)
select greatest(
    (select min(stream_id) from public.stream_positions where stream_name = 'events'),
    (select stream_id from public.current_state_delta_stream
      order by stream_id desc offset $1 limit 1),
    0)
on conflict do nothing
returning settled
"""

HOLD_CURSOR: Final = """
-- membership_stream.hold_cursor
select settled, recent, noted,
       coalesce(noted_at < clock_timestamp() - make_interval(secs => $1), false) as is_old
  from membership_cursor for update skip locked
"""

WAIT_FOR_CURSOR: Final = """
-- membership_stream.wait_for_cursor
select true from membership_cursor for update
"""

BOUND: Final = """
-- membership_stream.bound: every row up to it is committed or never will be
select min(stream_id) from public.stream_positions where stream_name = 'events'
"""

# A scalar subquery stays an index probe per row, whatever plan is cached.
READ: Final = """
-- membership_stream.read: rows of one stream_id are of one commit, and never parted
select d.stream_id, d.room_id, d.user_id,
       (select p.membership from public.room_memberships p
         where p.event_id = d.prev_event_id) is not distinct from 'join' as was_joined
  from (select stream_id, room_id, state_key as user_id, prev_event_id
          from public.current_state_delta_stream
         where stream_id > $1 and stream_id <> all ($2::bigint[]) and type = 'm.room.member'
         order by stream_id fetch first $3 rows with ties) d
"""

JOINED: Final = """
-- membership_stream.joined: which of these pairs hold now
select p.room_id, p.user_id
  from unnest($1::text[], $2::text[]) as p(room_id, user_id)
 where (select e.membership from public.current_state_events e
         where e.room_id = p.room_id and e.type = 'm.room.member'
           and e.state_key = p.user_id) = 'join'
"""

MOVE_CURSOR: Final = """
-- membership_stream.move_cursor
update membership_cursor
   set settled = $1, recent = $2, noted = $3,
       noted_at = case when noted = $3 then noted_at else clock_timestamp() end
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """Up to where the stream was followed.

    Attributes:
        settled: nobody looks at or below it again.
        recent: ids above it that were followed, ascending.
        noted: an id that was followed, with all that was there below it; None: none is noted.
        is_old: that was longer ago than any writer takes to commit.
    """

    settled: int
    recent: tuple[int, ...] = ()
    noted: int | None = None
    is_old: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A change of membership: it says whom to look at; what holds now, the current state says.

    Attributes:
        was_joined: the membership before it was `join`.
    """

    stream_id: int
    room_id: str
    user_id: str
    was_joined: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Deltas:
    """What one pass follows.

    Attributes:
        bound: every row up to it was there to read; None: the homeserver does not say.
        whole: nothing that was there to read is left behind.
    """

    bound: int | None
    rows: tuple[Delta, ...]
    whole: bool


async def create_cursor(conn: Connection) -> bool:
    """Begin to follow here, if nobody has begun; read what holds now after it, in any case.

    Waits for another who is creating it. False if it was there before.
    """
    return await conn.fetchval(CREATE_CURSOR, MOST_RECENT) is not None


async def hold_cursor(conn: Connection, *, settle_seconds: float = SETTLE_SECONDS) -> Cursor | None:
    """Become the one follower until the DB transaction ends; None if another is, or none may be."""
    row = await conn.fetchrow(HOLD_CURSOR, settle_seconds)
    if row is None:
        return None
    return Cursor(
        settled=row["settled"],
        recent=tuple(row["recent"]),
        noted=row["noted"],
        is_old=row["is_old"],
    )


async def wait_for_cursor(conn: Connection) -> bool:
    """Nobody follows until the DB transaction ends; waits for who does. False: nobody ever did."""
    return await conn.fetchval(WAIT_FOR_CURSOR) is True


async def read(conn: Connection, cursor: Cursor, *, limit: int) -> Deltas:
    """The next rows that were not followed yet, also above the bound: whole ids, at least one.

    The bound is read first, as its own statement: what it covers can then be read.
    """
    bound = await conn.fetchval(BOUND)
    rows = await conn.fetch(READ, cursor.settled, cursor.recent, limit)
    return Deltas(bound=bound, rows=tuple(Delta(**row) for row in rows), whole=len(rows) < limit)


async def joined(conn: Connection, pairs: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those pairs of room and user that are joined now."""
    columns = [list(column) for column in zip(*pairs, strict=True)]
    return {(row["room_id"], row["user_id"]) for row in await conn.fetch(JOINED, *columns)}


async def move_cursor(conn: Connection, cursor: Cursor, deltas: Deltas) -> None:
    """Remember what was followed; only who holds the cursor may."""
    after = moved(cursor, deltas)
    if (after.settled, after.recent, after.noted) != (
        cursor.settled,
        cursor.recent,
        cursor.noted,
    ):
        await conn.execute(MOVE_CURSOR, after.settled, after.recent, after.noted)


def moved(cursor: Cursor, deltas: Deltas, *, most_recent: int = MOST_RECENT) -> Cursor:
    """The cursor when the deltas are followed.

    An idle second writer of events holds the bound back, maybe for ever. So settled moves over
    what was noted long ago, too, and over the oldest when too many ids would be remembered.
    """
    followed = sorted({delta.stream_id for delta in deltas.rows})
    settled = cursor.settled
    reaches = [deltas.bound or 0, (cursor.noted or 0) if cursor.is_old else 0]
    reach = max(reaches) if deltas.whole else min(max(reaches), followed[-1])
    settled = max(settled, reach)
    recent = sorted(each for each in {*cursor.recent, *followed} if each > settled)
    if len(recent) > most_recent:
        settled, recent = recent[-most_recent - 1], recent[-most_recent:]
    noted = cursor.noted
    if noted is None or noted <= settled:
        noted = recent[-1] if recent else None
    return Cursor(settled=settled, recent=tuple(recent), noted=noted)
