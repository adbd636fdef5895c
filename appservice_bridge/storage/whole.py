"""How the bridge as a whole is, in one statement: a busy worker waits long for each answer."""

from dataclasses import dataclass
from typing import Final

from appservice_bridge.domain.capture import CaptureMode
from appservice_bridge.storage.capture_state import CaptureState
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.watch import SILENT_DAYS

LOOK: Final = """
-- whole.look: the row of capture_watch may be gone until somebody makes it again
select s.mode, s.since, s.problems, s.unreadable, s.looked_at,
       coalesce(w.keys_only, false) as keys_only,
       coalesce(w.beat_at < clock_timestamp() - make_interval(days => $1), false) as silent,
       (select count(*) from (select from capture_log limit 100000) c) as captured,
       (select sum(pg_total_relation_size(oid))::bigint from pg_class
         where relnamespace = 'appservice_bridge'::regnamespace
           and relkind in ('r', 'm')) as used_bytes
  from capture_state s left join capture_watch w on true
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """What is told of no single lane.

    Attributes:
        captured: facts that are captured and not yet routed; counted up to 100,000.
        used_bytes: what the bridge takes on the homeserver's disk.
        keys_only: the budget is used up.
        silent: no worker was alive for so long that triggers write nothing.
    """

    capture: CaptureState
    captured: int
    used_bytes: int
    keys_only: bool
    silent: bool


async def look(conn: Connection) -> Whole:
    """How it is now."""
    (row,) = await conn.fetch(LOOK, SILENT_DAYS)
    return Whole(
        capture=CaptureState(
            mode=CaptureMode(row["mode"]),
            since=row["since"],
            problems=tuple(row["problems"]),
            unreadable=frozenset(row["unreadable"]),
            looked_at=row["looked_at"],
        ),
        captured=row["captured"],
        used_bytes=row["used_bytes"],
        keys_only=row["keys_only"],
        silent=row["silent"],
    )
