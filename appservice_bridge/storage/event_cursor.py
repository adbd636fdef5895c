"""Up to where each appservice's room events were compared with what came; nobody looks again."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.storage import repeats
from appservice_bridge.storage.database import Connection

LOOK_BACK: Final = timedelta(days=repeats.KEEP_DAYS - 1)
FRESH: Final = timedelta(minutes=1)
MOST_SKIPPED: Final = 100_000  # in one statement

SETTLED: Final = """
-- event_cursor.settled
select appservice_id, settled from event_cursor
"""

START: Final = """
-- event_cursor.start: at the present, for those that the homeserver has sent anything
insert into event_cursor (appservice_id, settled, began)
select of.appservice_id, $2, $2
  from unnest($1::text[]) as of(appservice_id)
 where exists (select from relayed r where r.appservice_id = of.appservice_id)
on conflict do nothing
"""

BEGIN: Final = """
-- event_cursor.begin: before the first event that ever comes, if it happened just now; what
-- Synapse has in memory behind that one is found, too
insert into event_cursor (appservice_id, settled, began)
select $1, first - 1, first - 1
  from (select min(stream_ordering) as first from public.events
         where event_id = any($2::text[])
           and received_ts > extract(epoch from now() - $3::interval) * 1000) e
 where first is not null
on conflict do nothing
"""

MARK_COMPARED: Final = """
-- event_cursor.mark_compared: of $2 what was compared so long ago that nobody knows any more that
-- it came
with old as materialized (
    select event_id, stream_ordering from public.events
     where event_id = any($2::text[])
       and received_ts <= extract(epoch from now() - $3::interval) * 1000
)
insert into seen_event (appservice_id, event_digest)
select c.appservice_id, sha256(convert_to(old.event_id, 'UTF8'))
  from event_cursor c
  join old on old.stream_ordering > c.began and old.stream_ordering <= c.settled
 where c.appservice_id = $1
on conflict do nothing
"""

SKIP_OLD: Final = """
-- event_cursor.skip_old: of what is older than $2 it is not known any more whether it came; up to
-- the first that is not, for a clock may have been wrong behind it
with next as materialized (
    select e.stream_ordering, e.received_ts
      from event_cursor c
     cross join lateral (select * from public.events where stream_ordering > c.settled
                          order by stream_ordering limit $3) e
     where c.appservice_id = $1
), young as (
    select min(stream_ordering) as first from next
     where received_ts is null or received_ts > extract(epoch from now() - $2::interval) * 1000
), old as (
    select max(stream_ordering) as last from next, young
     where young.first is null or stream_ordering < young.first
)
update event_cursor c set settled = old.last, began = old.last
  from old
 where c.appservice_id = $1 and old.last > c.settled
"""

FORGET: Final = """
-- event_cursor.forget: what is registered again starts at the present again
delete from event_cursor c
 where not exists (select from appservice a where a.appservice_id = c.appservice_id)
"""

RAISE: Final = """
-- event_cursor.raise
update event_cursor set settled = $3 where appservice_id = $1 and settled = $2
"""


class CursorMovedError(BridgeError):
    """The cursor is not where it was: roll back, and look again."""

    def __init__(self, appservice_id: str) -> None:
        super().__init__(f"the events of {appservice_id} were compared, or skipped, meanwhile")
        self.appservice_id = appservice_id


async def settled(conn: Connection) -> dict[str, int]:
    """Up to where each appservice's events were compared."""
    rows = await conn.fetch(SETTLED)
    return {row["appservice_id"]: row["settled"] for row in rows}


async def start(conn: Connection, appservice_ids: Sequence[str], *, at: int) -> None:
    """Start at the present where the homeserver has sent anything, and nothing is compared yet."""
    await conn.execute(START, appservice_ids, at)


async def begin(conn: Connection, appservice_id: str, event_ids: Sequence[str]) -> None:
    """Compare from here on, where nothing was compared yet and these happened just now."""
    await conn.execute(BEGIN, appservice_id, event_ids, FRESH)


async def mark_compared(conn: Connection, appservice_id: str, event_ids: Sequence[str]) -> None:
    """Let intake drop what came, or was recovered, so long ago that this was forgotten.

    Synapse sends what stayed in its database when it was killed at its next failure, which may be
    months later.
    """
    await conn.execute(MARK_COMPARED, appservice_id, event_ids, LOOK_BACK)


async def skip_old(conn: Connection, appservice_id: str) -> bool:
    """Begin anew behind what was not compared for so long that its copies could not be told.

    Returns whether the cursor moved; there may be more.
    """
    done = await conn.execute(SKIP_OLD, appservice_id, LOOK_BACK, MOST_SKIPPED)
    return done == "UPDATE 1"


async def forget(conn: Connection) -> None:
    """Forget how far the events of appservices were compared that are registered no longer."""
    await conn.execute(FORGET)


async def raise_to(conn: Connection, appservice_id: str, *, at: int, to: int) -> None:
    """All events up to `to` came, or are put into the log by this DB transaction.

    Raises:
        CursorMovedError: the cursor is not `at` any more.
    """
    if await conn.execute(RAISE, appservice_id, at, to) != "UPDATE 1":
        raise CursorMovedError(appservice_id)
