"""Where an appservice's users are joined, and whom it was therefore told about."""

from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.device_updates import ListKey

# A scalar subquery stays an index probe per row, whatever plan is cached. A column of ours may
# not be compared with an indexed one of Synapse's: the collations differ, and no index would do.

OCCUPIED: Final = """
-- tracking.occupied: in which of the rooms which of the appservices has a user
select a.appservice_id, r.room_id
  from unnest($1::text[]) as a(appservice_id) cross join unnest($2::text[]) as r(room_id)
 where (select true from resident x
         where x.appservice_id = a.appservice_id and x.room_id = r.room_id limit 1)
"""

ADD_RESIDENTS: Final = """
-- tracking.add_residents
insert into resident (appservice_id, room_id, user_id)
select * from unnest($1::text[], $2::text[], $3::text[]) on conflict do nothing
"""

REMOVE_RESIDENTS: Final = """
-- tracking.remove_residents
delete from resident r using unnest($1::text[], $2::text[], $3::text[]) as g(a, room_id, user_id)
 where r.appservice_id = g.a and r.room_id = g.room_id and r.user_id = g.user_id
"""

MEMBERS: Final = """
-- tracking.members: who is joined in a room, and is or is not tracked already
select n.appservice_id, e.state_key as user_id
  from unnest($1::text[], $2::text[]) as n(appservice_id, room_id)
 cross join lateral (select state_key from public.current_state_events
                      where room_id = n.room_id and type = 'm.room.member'
                        and membership = 'join') e
 where coalesce((select true from tracked t where t.appservice_id = n.appservice_id
                                              and t.user_id = e.state_key), false) = $3
"""

RESIDENTS_PAGE: Final = """
-- tracking.residents_page
select appservice_id, room_id, user_id from resident
 where (appservice_id, room_id, user_id) > ($1, $2, $3) order by 1, 2, 3 limit $4
"""

TRACKED_PAGE: Final = """
-- tracking.tracked_page
select appservice_id, user_id from tracked
 where (appservice_id, user_id) > ($1, $2) order by 1, 2 limit $3
"""

TRACKED_AMONG: Final = """
-- tracking.tracked_among
select appservice_id, user_id from tracked where user_id = any($1::text[])
"""

TRACK: Final = """
-- tracking.track
insert into tracked (appservice_id, user_id)
select * from unnest($1::text[], $2::text[]) on conflict do nothing
"""

# Intake holds tracked rows for key share while it routes to them: both lock in one order.
UNTRACK: Final = """
-- tracking.untrack: of these, who shares no room any more
with gone as materialized (
    select c.appservice_id, c.user_id
      from unnest($1::text[], $2::text[]) as c(appservice_id, user_id)
     where (select true from public.current_state_events e
             where e.state_key = c.user_id and e.type = 'm.room.member'
               and e.membership = 'join'
               and (select true from resident r where r.appservice_id = c.appservice_id
                                                  and r.room_id = e.room_id limit 1)
             limit 1) is null
)
delete from tracked t using gone g
 where t.appservice_id = g.appservice_id and t.user_id = g.user_id
returning t.appservice_id, t.user_id
"""


class Occupied(NamedTuple):
    """A room that a user of the appservice is joined in."""

    appservice_id: str
    room_id: str


class Resident(NamedTuple):
    """A user of the appservice in a room."""

    appservice_id: str
    room_id: str
    user_id: str


async def occupied(
    conn: Connection, appservice_ids: Sequence[str], room_ids: Collection[str]
) -> set[Occupied]:
    """Which of the rooms have a resident of which of the appservices."""
    rows = await conn.fetch(OCCUPIED, appservice_ids, sorted(room_ids))
    return {Occupied(*row) for row in rows}


async def move_residents(
    conn: Connection, *, come: Iterable[Resident], gone: Iterable[Resident]
) -> None:
    """Take residents in and out; those who are there already, or not, do no harm."""
    if columns := _columns(come):
        await conn.execute(ADD_RESIDENTS, *columns)
    if columns := _columns(gone):
        await conn.execute(REMOVE_RESIDENTS, *columns)


async def members(conn: Connection, rooms: Iterable[Occupied], *, tracked: bool) -> set[ListKey]:
    """The joined members of rooms that the appservice tracks already, or does not track yet."""
    if not (columns := _columns(rooms)):
        return set()
    return {ListKey(*row) for row in await conn.fetch(MEMBERS, *columns, tracked)}


async def residents_page(conn: Connection, *, after: Resident, size: int) -> list[Resident]:
    """The next so many residents of all appservices."""
    return [Resident(*row) for row in await conn.fetch(RESIDENTS_PAGE, *after, size)]


async def tracked_page(conn: Connection, *, after: ListKey, size: int) -> list[ListKey]:
    """The next so many of those whom appservices were told about."""
    return [ListKey(*row) for row in await conn.fetch(TRACKED_PAGE, *after, size)]


async def tracked_among(conn: Connection, user_ids: Collection[str]) -> set[ListKey]:
    """Who was told about these users."""
    return {ListKey(*row) for row in await conn.fetch(TRACKED_AMONG, sorted(user_ids))}


async def track(conn: Connection, pairs: Iterable[ListKey]) -> None:
    """From the commit on these appservices hear of these users."""
    if columns := _columns(pairs):
        await conn.execute(TRACK, *columns)


async def untrack(conn: Connection, candidates: Iterable[ListKey]) -> set[ListKey]:
    """Forget the candidates that share no room with a resident any more; returns those."""
    if not (columns := _columns(candidates)):
        return set()
    return {ListKey(*row) for row in await conn.fetch(UNTRACK, *columns)}


def _columns(rows: Iterable[tuple[str, ...]]) -> list[list[str]]:
    return [list(column) for column in zip(*sorted(rows), strict=True)]
