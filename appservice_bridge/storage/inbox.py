"""Synapse's inbox compared with the log: what no trigger captured is appended."""

from collections.abc import Sequence
from typing import Final

from appservice_bridge.blueprint.capture import SET_FLOOR
from appservice_bridge.domain.synapse_tables import Stream
from appservice_bridge.storage import floors
from appservice_bridge.storage.database import Connection, reading_synapse
from appservice_bridge.storage.repeats import InboxKey

COMPARE_AS_SETS: Final = """
-- inbox.compare_as_sets: the log has no index on the inbox's key, and is to have none. Statistics
-- from before a backlog would have it read once for each row of the inbox, for minutes.
set local enable_nestloop = off
"""

APPEND_MISSED: Final = """
-- inbox.append_missed: a captured row's own capture is seen by the same snapshot, or was taken.
-- Scalar subqueries stay index probes per row; the comparison with the log becomes a join.
insert into capture_log (kind, user_id, device_id, stream_id, body)
select 'to_device', i.user_id, i.device_id, i.stream_id,
       case when (select keys_only from capture_watch)
            then '' else convert_to(i.message_json, 'UTF8') end
  from public.device_inbox i
 where i.stream_id > $1
   and (select true from foreign_user f where f.user_id = i.user_id) is null
   and (select true from taken t
         where t.user_id = i.user_id and t.device_id = i.device_id
           and t.stream_id = i.stream_id) is null
   and not exists (select from capture_log c
                    where c.kind = 'to_device' and c.user_id = i.user_id
                      and c.device_id = i.device_id and c.stream_id = i.stream_id)
 order by i.stream_id
 limit $2
"""

FORGET_TAKEN: Final = """
-- inbox.forget_taken: what is older than an appservice may be read again, and stays
delete from taken t using (
    select user_id, device_id, stream_id from taken
     where stream_id > coalesce((select max(stream_id) from attached), 0)
       and stream_id <= (select settled from stream_floor where stream = 'to_device')
     order by stream_id limit $1) old
 where t.user_id = old.user_id and t.device_id = old.device_id and t.stream_id = old.stream_id
"""

FORGET_GONE: Final = """
-- inbox.forget_gone: of what is older, what the inbox has no more; $1 is how far the last look came
with old as (
    select user_id, device_id, stream_id from taken
     where stream_id > $1
       and stream_id <= least((select settled from stream_floor where stream = 'to_device'),
                              (select max(stream_id) from attached))
     order by stream_id fetch first $2 rows with ties
), gone as (
    delete from taken t using old
     where t.user_id = old.user_id and t.device_id = old.device_id
       and t.stream_id = old.stream_id
       and (select true from public.device_inbox i
             where i.user_id = old.user_id and i.device_id = old.device_id
               and i.stream_id = old.stream_id limit 1) is null
)
select max(stream_id) from old
"""

BODIES: Final = """
-- inbox.bodies: in the order of the keys, as many as fit in $4 bytes, one at least
select place, convert_to(message_json, 'UTF8') as body
  from (select k.place, i.message_json,
               sum(coalesce(octet_length(i.message_json), 0)) over (order by k.place)
               - coalesce(octet_length(i.message_json), 0) as bytes_before
          from unnest($1::text[], $2::text[], $3::bigint[])
               with ordinality as k(user_id, device_id, stream_id, place)
          left join lateral (select message_json from public.device_inbox d
                              where d.user_id = k.user_id and d.device_id = k.device_id
                                and d.stream_id = k.stream_id limit 1) i on true) n
 where bytes_before < $4
 order by place
"""


async def set_floor(conn: Connection) -> None:
    """Start at the present, unless it was started before.

    Raises:
        SourceUnreadableError: the inbox is not as it was.
    """
    with reading_synapse():
        await conn.execute(SET_FLOOR)


async def append_missed(conn: Connection, *, limit: int) -> int | None:
    """Append inbox rows that were neither captured nor routed; None if another worker does.

    Raises:
        SourceUnreadableError: the inbox is not as it was.
    """
    settled = await floors.hold(conn, Stream.TO_DEVICE)
    if settled is None:
        return None
    with reading_synapse():
        await conn.execute(COMPARE_AS_SETS)
        done = await conn.execute(APPEND_MISSED, settled, limit)
    return int(done.split()[2])


async def poll(conn: Connection, *, limit: int, wait: bool) -> int | None:
    """The same from where polling left off; None if another worker does, and it is not waited for.

    The bound is read before the rows, as its own statement: what is read next time may begin
    above it. Rows above it are taken, too, as far as they are there: what commits late is told
    from them by its key. Dying anywhere leaves log and position as they were.

    Raises:
        SourceUnreadableError: the inbox is not as it was.
    """
    position = await floors.hold_polled(conn, Stream.TO_DEVICE, wait=wait)
    if position is None:
        return None
    with reading_synapse():
        bound = await floors.bound(conn, Stream.TO_DEVICE)
        await conn.execute(COMPARE_AS_SETS)
        done = await conn.execute(APPEND_MISSED, position, limit)
    appended = int(done.split()[2])
    if appended < limit:
        await floors.set_polled(conn, Stream.TO_DEVICE, bound)
    return appended


async def move_floor(conn: Connection, *, settle_seconds: float) -> None:
    """Raise the floor, and note where it may go next: see `floors.move`."""
    with reading_synapse():
        bound = await floors.bound(conn, Stream.TO_DEVICE)
    await floors.move(conn, Stream.TO_DEVICE, bound, settle_seconds=settle_seconds)


async def forget_taken(conn: Connection, *, batch: int) -> int:
    """Forget rows of the inbox below the floor that were routed; returns how many."""
    done = await conn.execute(FORGET_TAKEN, batch)
    return int(done.split()[1])


async def forget_gone(conn: Connection, *, after: int, batch: int) -> int:
    """Look at one batch of what was routed and is older than an appservice; forget what is gone.

    Returns up to where it looked, for the next look; 0 where that begins again. Who appends such
    a row holds the floor and finds it in the inbox, so no second copy of what is gone can come.
    """
    return await conn.fetchval(FORGET_GONE, after, batch) or 0


async def present(conn: Connection) -> int:
    """Up to where the homeserver has written its stream of to-device messages, all of it."""
    return await floors.bound(conn, Stream.TO_DEVICE) or 0


async def bodies(
    conn: Connection, keys: Sequence[InboxKey], *, max_bytes: int
) -> list[bytes | None]:
    """What the homeserver stored under the first of these keys, up to about so many bytes.

    None where it holds nothing any more: the device took it itself, or was deleted.
    """
    columns = [list(column) for column in zip(*keys, strict=True)] or [[], [], []]
    return [row["body"] for row in await conn.fetch(BODIES, *columns, max_bytes)]
