"""Up to where each stream of the homeserver's was compared with the log; its row is the lock."""

from typing import Final

from appservice_bridge.domain.synapse_tables import Stream
from appservice_bridge.storage.database import Connection

HOLD: Final = """
-- floors.hold
select settled from stream_floor where stream = $1 for update skip locked
"""

HOLD_POLLED: Final = """
-- floors.hold_polled
select greatest(settled, polled) from stream_floor where stream = $1 for update skip locked
"""

AWAIT_POLLED: Final = """
-- floors.await_polled
select greatest(settled, polled) from stream_floor where stream = $1 for update
"""

SET_POLLED: Final = """
-- floors.set_polled
update stream_floor set polled = $2 where stream = $1 and greatest(settled, polled) < $2
"""

BOUND: Final = """
-- floors.bound: every row up to it is committed or never will be
select min(stream_id) from public.stream_positions where stream_name = $1
"""

RAISE: Final = """
-- floors.raise: only when everything that was captured up to the note is routed
update stream_floor f set settled = f.next, next = null
  from intake_gate g
 where f.stream = $1 and f.next is not null
   and f.noted_at < clock_timestamp() - make_interval(secs => $2)
   and g.head >= f.next_seq
   and not exists (select from intake_gap p where p.first_seq <= f.next_seq)
   and not exists (select from capture_log c where c.seq <= f.next_seq)
"""

NOTE: Final = """
-- floors.note
update stream_floor set next = $2, next_seq = (select last_value from capture_seq),
                        noted_at = clock_timestamp()
 where stream = $1 and next is null and settled < $2
"""


async def hold(conn: Connection, stream: Stream) -> int | None:
    """The floor, held until the DB transaction ends; None if another worker holds it."""
    settled: int | None = await conn.fetchval(HOLD, stream)
    return settled


async def hold_polled(conn: Connection, stream: Stream, *, wait: bool) -> int | None:
    """Where polling goes on, held as the floor is; `wait` for another worker rather than None."""
    position: int | None = await conn.fetchval(AWAIT_POLLED if wait else HOLD_POLLED, stream)
    return position


async def set_polled(conn: Connection, stream: Stream, bound: int | None) -> None:
    """Polling goes on above this bound, which was read before the rows were."""
    if bound is not None:
        await conn.execute(SET_POLLED, stream, bound)


async def bound(conn: Connection, stream: Stream) -> int | None:
    """Up to where the homeserver's writers of a stream are done; None before the first."""
    upto: int | None = await conn.fetchval(BOUND, stream)
    return upto


async def move(
    conn: Connection, stream: Stream, upto: int | None, *, settle_seconds: float
) -> None:
    """Raise the floor to what was noted so many seconds ago, and note where it may go next.

    Only in a DB transaction that holds the floor and found nothing to append. `upto` was read
    before the log's last number is, as its own statement: what it covers was then written.
    """
    await conn.execute(RAISE, stream, settle_seconds)
    if upto is not None:
        await conn.execute(NOTE, stream, upto)
