"""What Synapse's inbox still holds from before the bridge, put into the log like any capture."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from appservice_bridge.storage import inbox
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.repeats import InboxKey

PAGE: Final = """
-- backfill.page: by the stream, so that all that was sent comes in the order it was sent in
select distinct stream_id, user_id
  from (select stream_id, user_id from public.device_inbox
         where stream_id > $1 and stream_id <= $2
         order by stream_id fetch first $3 rows with ties) i
"""

HOLD_FLOOR: Final = """
-- backfill.hold_floor: nobody else appends rows of the inbox meanwhile; what they did is seen
select true from stream_floor where stream = 'to_device' for update
"""

MISSING: Final = """
-- backfill.missing: rows of users up to their bounds, of devices that exist, that nobody took
select i.user_id, i.device_id, i.stream_id
  from public.device_inbox i
  join unnest($3::text[], $4::bigint[]) as u(user_id, bound) on u.user_id = i.user_id
 where i.stream_id > $1 and i.stream_id <= $2 and i.stream_id <= u.bound
   and (select true from public.devices v
         where v.user_id = i.user_id and v.device_id = i.device_id
           and not v.hidden limit 1) is not null
   and (select true from taken t
         where t.user_id = i.user_id and t.device_id = i.device_id
           and t.stream_id = i.stream_id) is null
   and not exists (select from capture_log c
                    where c.kind = 'to_device' and c.user_id = i.user_id
                      and c.device_id = i.device_id and c.stream_id = i.stream_id)
"""

APPEND: Final = """
-- backfill.append
insert into capture_log (kind, user_id, device_id, stream_id, body)
select 'to_device', k.user_id, k.device_id, k.stream_id, convert_to(i.message_json, 'UTF8')
  from unnest($1::text[], $2::text[], $3::bigint[]) as k(user_id, device_id, stream_id)
 cross join lateral (select message_json from public.device_inbox i
                      where i.user_id = k.user_id and i.device_id = k.device_id
                        and i.stream_id = k.stream_id limit 1) i
 order by k.stream_id
"""


class Page(NamedTuple):
    """A stretch of the inbox's stream.

    Attributes:
        upto: its last position.
        user_ids: whose rows it holds.
    """

    upto: int
    user_ids: frozenset[str]


async def page(conn: Connection, *, after: int, upto: int, size: int) -> Page | None:
    """The next rows above a position, `size` or a few more; None where there are none."""
    rows = await conn.fetch(PAGE, after, upto, size)
    if not rows:
        return None
    users = frozenset(row["user_id"] for row in rows)
    return Page(upto=max(row["stream_id"] for row in rows), user_ids=users)


async def hold_floor(conn: Connection) -> None:
    """Until the DB transaction ends, nobody else puts rows of the inbox into the log."""
    await conn.execute(HOLD_FLOOR)


async def missing(
    conn: Connection, *, after: int, upto: int, bounds: Mapping[str, int]
) -> list[InboxKey]:
    """Rows of a stretch that wait nowhere and were never routed, for the users in `bounds`.

    For each user only up to the position given there.
    """
    await conn.execute(inbox.COMPARE_AS_SETS)
    rows = await conn.fetch(MISSING, after, upto, list(bounds), list(bounds.values()))
    return [InboxKey(*row) for row in rows]


async def append(conn: Connection, keys: Sequence[InboxKey]) -> int:
    """Append these rows of the inbox in the order of its stream; returns how many there were."""
    columns = [list(column) for column in zip(*keys, strict=True)]
    done = await conn.execute(APPEND, *columns)
    return int(done.split()[2])
