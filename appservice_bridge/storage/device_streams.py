"""Synapse's streams of device lists and signatures compared with the log, as the inbox is."""

from typing import Final

from appservice_bridge.domain.synapse_tables import (
    DEVICE_LIST_TABLES,
    SIGNATURE_TABLES,
    Stream,
)
from appservice_bridge.storage import floors, inbox
from appservice_bridge.storage.database import Connection, reading_synapse

TABLES: Final = DEVICE_LIST_TABLES | SIGNATURE_TABLES

SET_FLOOR: Final = """
-- device_streams.set_floor: one for both, as the sequence that they draw from
insert into stream_floor (stream, settled)
select 'device_lists_stream',
       greatest((select max(stream_id) from public.device_lists_stream),
                (select max(stream_id) from public.user_signature_stream), 0)
on conflict do nothing
"""

GONE: Final = """
-- device_streams.gone: devices of local users that the stream names and that are not there; those
-- whose change was captured only where $3, for then their deletion may not have been
select distinct d.user_id, d.device_id
  from public.device_lists_stream d
 where d.stream_id > $1 and right(d.user_id, length($2)) = $2
   and (select true from foreign_user f where f.user_id = d.user_id) is null
   and (select true from public.devices e
         where e.user_id = d.user_id and e.device_id = d.device_id) is null
   and ($3 or ((select true from taken_device_change t
                 where t.stream_id = d.stream_id and t.user_id = d.user_id
                   and t.device_id = d.device_id) is null
               and not exists (select from capture_log c
                                where c.kind = 'device_list' and c.stream_id = d.stream_id
                                  and c.user_id = d.user_id and c.device_id = d.device_id)))
 limit $4
"""

DRAW: Final = """
-- device_streams.draw: before it is looked whether the devices are there again
select array_agg(nextval('capture_seq') order by n) from generate_series(1, $1::integer) n
"""

APPEND_DELETED: Final = """
-- device_streams.append_deleted: what comes for one that is made again has a higher number
insert into capture_log (seq, kind, user_id, device_id)
select g.seq, 'device_deleted', g.user_id, g.device_id
  from unnest($1::bigint[], $2::text[], $3::text[]) as g(seq, user_id, device_id)
 where (select true from public.devices e
         where e.user_id = g.user_id and e.device_id = g.device_id) is null
"""

APPEND_LISTS: Final = """
-- device_streams.append_lists
with missed as (
    select d.stream_id, d.user_id, d.device_id
      from public.device_lists_stream d
     where d.stream_id > $1
       and (select true from taken_device_change t
             where t.stream_id = d.stream_id and t.user_id = d.user_id
               and t.device_id = d.device_id) is null
       and not exists (select from capture_log c
                        where c.kind = 'device_list' and c.stream_id = d.stream_id
                          and c.user_id = d.user_id and c.device_id = d.device_id)
     order by d.stream_id
     limit $2
), listed as (
    insert into capture_log (kind, user_id, device_id, stream_id)
    select 'device_list', user_id, device_id, stream_id from missed order by stream_id
)
select count(*) from missed
"""

APPEND_SIGNATURES: Final = """
-- device_streams.append_signatures: their numbers are of the same sequence, so none is both
insert into capture_log (kind, user_id, stream_id, body)
select 'signatures', s.from_user_id, s.stream_id, convert_to(s.user_ids, 'UTF8')
  from public.user_signature_stream s
 where s.stream_id > $1
   and (select true from foreign_user f where f.user_id = s.from_user_id) is null
   and (select true from taken_device_change t
         where t.stream_id = s.stream_id and t.user_id = s.from_user_id limit 1) is null
   and not exists (select from capture_log c
                    where c.kind = 'signatures' and c.stream_id = s.stream_id
                      and c.user_id = s.from_user_id)
 order by s.stream_id
 limit $2
"""

FORGET_TAKEN: Final = """
-- device_streams.forget_taken
delete from taken_device_change t using (
    select stream_id, user_id, device_id from taken_device_change
     where stream_id <= (select settled from stream_floor where stream = 'device_lists_stream')
     order by stream_id limit $1) old
 where t.stream_id = old.stream_id and t.user_id = old.user_id and t.device_id = old.device_id
"""


async def set_floor(conn: Connection) -> None:
    """Start at the present, unless it was started before.

    Raises:
        SourceUnreadableError: the tables are not as they were.
    """
    with reading_synapse():
        await conn.execute(SET_FLOOR)


async def append_missed(
    conn: Connection, *, limit: int, server_name: str, unreadable: frozenset[str], settle: float
) -> int | None:
    """Append what was neither captured nor routed; where there is nothing, move the floor.

    Returns how many; None if another worker does. `settle` is in seconds, see `floors.move`.

    Raises:
        SourceUnreadableError: the tables are not as they were.
    """
    settled = await floors.hold(conn, Stream.DEVICE_LISTS)
    if settled is None:
        return None
    await _append_deleted(conn, settled, limit, server_name, unreadable, captured=False)
    appended = await _append(conn, settled, limit, unreadable)
    if not appended and not unreadable & TABLES:
        with reading_synapse():
            bound = await floors.bound(conn, Stream.DEVICE_LISTS)
        await floors.move(conn, Stream.DEVICE_LISTS, bound, settle_seconds=settle)
    return appended


async def poll(
    conn: Connection, *, limit: int, server_name: str, unreadable: frozenset[str]
) -> int | None:
    """The same from where polling left off, as `inbox.poll` does.

    Raises:
        SourceUnreadableError: the tables are not as they were.
    """
    position = await floors.hold_polled(conn, Stream.DEVICE_LISTS, wait=False)
    if position is None:
        return None
    with reading_synapse():
        bound = await floors.bound(conn, Stream.DEVICE_LISTS)
    await _append_deleted(conn, position, limit, server_name, unreadable, captured=True)
    appended = await _append(conn, position, limit, unreadable)
    if appended < limit and not unreadable & TABLES:
        await floors.set_polled(conn, Stream.DEVICE_LISTS, bound)
    return appended


async def _append_deleted(
    conn: Connection,
    above: int,
    limit: int,
    server_name: str,
    unreadable: frozenset[str],
    *,
    captured: bool,
) -> None:
    """Append deletions of devices that are gone; the same again does no harm.

    A deletion drops what comes before it. So its number is drawn first, and then it is looked
    once more whether the device is still gone: whoever is made again later has higher numbers.
    """
    if unreadable & DEVICE_LIST_TABLES:
        return
    with reading_synapse():
        await conn.execute(inbox.COMPARE_AS_SETS)
        gone = await conn.fetch(GONE, above, f":{server_name}", captured, limit)
        if gone:
            seqs = await conn.fetchval(DRAW, len(gone))
            devices = [[row["user_id"] for row in gone], [row["device_id"] for row in gone]]
            await conn.execute(APPEND_DELETED, seqs, *devices)


async def _append(conn: Connection, above: int, limit: int, unreadable: frozenset[str]) -> int:
    appended = 0
    with reading_synapse():
        await conn.execute(inbox.COMPARE_AS_SETS)
        if not unreadable & DEVICE_LIST_TABLES:
            appended += await conn.fetchval(APPEND_LISTS, above, limit)
        if not unreadable & SIGNATURE_TABLES:
            done = await conn.execute(APPEND_SIGNATURES, above, limit)
            appended += int(done.split()[2])
    return appended


async def forget_taken(conn: Connection, *, batch: int) -> int:
    """Forget changes below the floor that were routed; returns how many."""
    done = await conn.execute(FORGET_TAKEN, batch)
    return int(done.split()[1])
