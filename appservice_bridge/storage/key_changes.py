"""Signs in Synapse's tables that the keys of a device changed, for where no trigger tells."""

from typing import Final, NamedTuple

from appservice_bridge.domain.synapse_tables import Stream
from appservice_bridge.storage import floors, inbox
from appservice_bridge.storage.database import Connection, reading_synapse

# What Synapse drops from its caches in the DB transaction that changes the keys of a device.
CACHES: Final = ("count_e2e_one_time_keys", "get_e2e_unused_fallback_key_types")
CLOCK_SKEW_SECONDS: Final = 10.0  # between Synapse's clock and Postgres'

SET_FLOOR: Final = """
-- key_changes.set_floor
insert into stream_floor (stream, settled)
select 'caches', coalesce(max(stream_id), 0) from public.cache_invalidation_stream_by_instance
on conflict do nothing
"""

LAST: Final = """
-- key_changes.last: numbers of this stream commit out of order, and no position says how far
select max(stream_id) from public.cache_invalidation_stream_by_instance
"""

APPEND_CHANGED: Final = """
-- key_changes.append_changed: each sign once; $4 leaves out what was captured at about that time
with sign as (
    select i.stream_id, i.keys[1] as user_id, i.keys[2] as device_id, i.invalidation_ts
      from public.cache_invalidation_stream_by_instance i
     where i.stream_id > $1 and i.cache_func = any($3::text[]) and cardinality(i.keys) = 2
       and (select true from taken_invalidation t where t.stream_id = i.stream_id) is null
     order by i.stream_id
     limit $2
), fresh as (
    insert into taken_invalidation (stream_id) select stream_id from sign
    on conflict do nothing
    returning stream_id
), changed as (
    select user_id, device_id, to_timestamp(max(invalidation_ts) / 1000.0) as changed_at
      from fresh join sign using (stream_id)
     group by 1, 2
), marked as (
    insert into capture_log (kind, user_id, device_id)
    select 'device_keys', c.user_id, c.device_id from changed c
     where (select true from foreign_user f where f.user_id = c.user_id) is null
       and not ($4 and coalesce((
           select true from device_key_state s
            where s.user_id = c.user_id and s.device_id = c.device_id
              and s.captured_at > c.changed_at - make_interval(secs => $5) limit 1), false))
       and not exists (select from capture_log l
                        where l.kind = 'device_keys' and l.user_id = c.user_id
                          and l.device_id = c.device_id and octet_length(l.body) = 0)
     order by 2, 3
)
select count(*) from fresh
"""

FORGET_TAKEN: Final = """
-- key_changes.forget_taken
delete from taken_invalidation t using (
    select stream_id from taken_invalidation
     where stream_id <= (select settled from stream_floor where stream = 'caches')
     order by stream_id limit $1) old
 where t.stream_id = old.stream_id
"""

TAKE_TURN: Final = """
-- key_changes.take_turn
update capture_state set recounted_at = clock_timestamp()
 where recounted_at is null or recounted_at < clock_timestamp() - make_interval(secs => $1)
"""

RECOUNT: Final = """
-- key_changes.recount: of devices that were told of
with device as (
    select distinct user_id, device_id from device_key_state
     where (user_id, device_id) > ($1, $2) order by 1, 2 limit $3
), counted as (
    select d.user_id, d.device_id, concat(
           (select string_agg(concat_ws('=', k.algorithm, k.keys), ',' order by k.algorithm)
              from (select algorithm, count(*) as keys from public.e2e_one_time_keys_json
                     where user_id = d.user_id and device_id = d.device_id group by 1) k), ' ',
           (select string_agg(concat_ws('=', f.algorithm, f.key_id), ',' order by f.algorithm)
              from public.e2e_fallback_keys_json f
             where f.user_id = d.user_id and f.device_id = d.device_id and not f.used)) as summary
      from device d
), changed as (
    insert into key_summary as s (user_id, device_id, summary)
    select user_id, device_id, summary from counted order by 1, 2
    on conflict (user_id, device_id) do update set summary = excluded.summary
     where s.summary <> excluded.summary
    returning s.user_id, s.device_id
), marked as (
    insert into capture_log (kind, user_id, device_id)
    select 'device_keys', user_id, device_id from changed order by 2, 3
    returning seq
)
select d.user_id, d.device_id, (select count(*) from marked) as marked
  from device d order by 1 desc, 2 desc limit 1
"""

FORGET_SUMMARIES: Final = """
-- key_changes.forget_summaries: of devices that nobody is told of any more
delete from key_summary k
 where not exists (select from device_key_state s
                    where s.user_id = k.user_id and s.device_id = k.device_id)
"""


class Device(NamedTuple):
    """A device of the homeserver's."""

    user_id: str
    device_id: str


async def set_floor(conn: Connection) -> None:
    """Start at the present, unless it was started before.

    Raises:
        SourceUnreadableError: the table is not as it was.
    """
    with reading_synapse():
        await conn.execute(SET_FLOOR)


async def last(conn: Connection) -> int | None:
    """The highest number that is there; lower ones may still commit.

    Raises:
        SourceUnreadableError: the table is not as it was.
    """
    with reading_synapse():
        number: int | None = await conn.fetchval(LAST)
    return number


async def append_missed(
    conn: Connection, *, limit: int, captured_too: bool, settle: float
) -> int | None:
    """Mark devices whose keys changed; where no sign of it is new, move the floor.

    With `captured_too` the triggers are at work: a sign is left out if the device was captured
    since shortly before it. What they left out so soon after, the recount of all finds. Returns
    how many signs were looked at; None if another worker does.

    Raises:
        SourceUnreadableError: the table is not as it was.
    """
    settled = await floors.hold(conn, Stream.CACHES)
    if settled is None:
        return None
    upto = await last(conn)
    looked_at = await _append(conn, settled, limit, captured_too=captured_too)
    if looked_at == 0:
        await floors.move(conn, Stream.CACHES, upto, settle_seconds=settle)
    return looked_at


async def poll(conn: Connection, *, limit: int, upto: int | None) -> int | None:
    """The same from where polling left off; next time from `upto`, which is long committed.

    Raises:
        SourceUnreadableError: the table is not as it was.
    """
    position = await floors.hold_polled(conn, Stream.CACHES, wait=False)
    if position is None:
        return None
    looked_at = await _append(conn, position, limit, captured_too=False)
    if looked_at < limit:
        await floors.set_polled(conn, Stream.CACHES, upto)
    return looked_at


async def _append(conn: Connection, above: int, limit: int, *, captured_too: bool) -> int:
    parameters = (above, limit, CACHES, captured_too, CLOCK_SKEW_SECONDS)
    with reading_synapse():
        await conn.execute(inbox.COMPARE_AS_SETS)
        return int(await conn.fetchval(APPEND_CHANGED, *parameters))


async def forget_taken(conn: Connection, *, batch: int) -> int:
    """Forget signs below the floor that were looked at; returns how many."""
    done = await conn.execute(FORGET_TAKEN, batch)
    return int(done.split()[1])


async def take_turn(conn: Connection, *, every_seconds: float) -> bool:
    """Whether it is time to count all again, and nobody else does."""
    return await conn.execute(TAKE_TURN, every_seconds) == "UPDATE 1"


async def recount(conn: Connection, after: Device, *, batch: int) -> tuple[Device | None, int]:
    """Count the keys of the next devices, and mark those that came to something else than before.

    Returns the last device looked at, None at the end, and how many were marked. A device that
    was captured meanwhile is marked, too, once in each recount at most: a repeat does no harm.

    Raises:
        SourceUnreadableError: the tables are not as they were.
    """
    with reading_synapse():
        row = await conn.fetchrow(RECOUNT, *after, batch)
    if row is None:
        await conn.execute(FORGET_SUMMARIES)
        return None, 0
    return Device(row["user_id"], row["device_id"]), row["marked"]
