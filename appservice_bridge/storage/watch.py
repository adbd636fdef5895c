"""What the triggers are told: that the bridge is alive, and whether they may write payloads."""

from dataclasses import dataclass
from typing import Final

from appservice_bridge.storage.database import Connection, connect, named_errors

SILENT_DAYS: Final = 7
"""After so long without a beat the triggers write nothing; they hold the same number."""

_BEAT_SECONDS: Final = 50  # of several workers one beats a minute

READ: Final = """
-- watch.read
select beat_at < clock_timestamp() - make_interval(days => $1) as silent, keys_only, recompute
  from capture_watch
"""

MEASURE: Final = """
-- watch.measure: a table takes its indexes, and what is stored out of line, along
select sum(pg_total_relation_size(oid))::bigint as used_bytes,
       pg_total_relation_size('capture_log') as log_bytes
  from pg_class
 where relnamespace = 'appservice_bridge'::regnamespace and relkind in ('r', 'm')
"""

BEAT: Final = """
-- watch.beat: a silence is ended, and what it cost is put down, in one write
update capture_watch
   set beat_at = clock_timestamp(), log_limit_bytes = $1,
       recompute = recompute or beat_at < clock_timestamp() - make_interval(days => $2)
 where beat_at < clock_timestamp() - make_interval(secs => $3)
"""

SET_KEYS_ONLY: Final = """
-- watch.set_keys_only
update capture_watch set keys_only = $1 where keys_only <> $1
"""

RESTORE: Final = """
-- watch.restore: the row is there from the migration on
insert into capture_watch default values on conflict do nothing
"""

RECOMPUTED: Final = """
-- watch.recomputed
update capture_watch set recompute = false
"""

RECLAIM: Final = """
-- watch.reclaim: gives what was deleted back to the disk; a table that is being vacuumed is skipped
vacuum (skip_locked) capture_log, outbox, taken, relayed, seen_event, dead_letter, sealed,
                     device_list_update, device_key_state, kept
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What the triggers are told.

    Attributes:
        silent: no worker was alive for so long that they write nothing.
        keys_only: the budget is used up.
        recompute: there was a silence, and not everything is recomputed yet.
    """

    silent: bool
    keys_only: bool
    recompute: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What the bridge takes on the homeserver's disk.

    Attributes:
        used_bytes: all tables, with what is deleted in them and not given back.
        log_bytes: the part of the capture log.
    """

    used_bytes: int
    log_bytes: int


async def read(conn: Connection) -> Watch:
    """What the triggers are told now; the row is made again if somebody deleted it."""
    row = await conn.fetchrow(READ, SILENT_DAYS)
    if row is None:
        await conn.execute(RESTORE)
        return Watch(silent=False, keys_only=False, recompute=False)
    return Watch(**row)


async def measure(conn: Connection) -> Size:
    """How much the bridge takes now."""
    row = await conn.fetchrow(MEASURE)
    return Size(**row) if row else Size(used_bytes=0, log_bytes=0)


async def beat(conn: Connection, *, log_limit_bytes: int) -> None:
    """Say that the bridge is alive, and how large the log may become while it is not.

    The first beat after a silence puts down that everything is to be recomputed.
    """
    await conn.execute(BEAT, log_limit_bytes, SILENT_DAYS, _BEAT_SECONDS)


async def set_keys_only(conn: Connection, *, keys_only: bool) -> bool:
    """Tell whether payloads may be written; False if that was said before."""
    return await conn.execute(SET_KEYS_ONLY, keys_only) == "UPDATE 1"


async def recomputed(conn: Connection) -> None:
    """What the silence cost is made up for."""
    await conn.execute(RECOMPUTED)


async def reclaim(dsn: str) -> None:
    """Give the disk back what was deleted; a table's end is locked only while nobody wants it.

    Raises:
        DatabaseUnavailableError: not all was given back; try again.
    """
    conn = await connect(dsn)
    try:
        with named_errors():
            await conn.execute("set statement_timeout = 0")
            await conn.execute(RECLAIM)
    finally:
        conn.terminate()
