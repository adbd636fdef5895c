"""Transactions that were acknowledged and stay for a replay, and their release."""

from dataclasses import dataclass
from typing import Final

from appservice_bridge.domain.transaction import Kind
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.leases import Lease

KEEP: Final = """
-- kept.keep: in the DB transaction of its ack, and before it; what tells of devices only is state
insert into kept (appservice_id, number, txn_id, first_position, last_position, items,
                  payload_bytes)
select s.appservice_id, s.number, s.txn_id, s.first_position, s.last_position, s.items,
       (select coalesce(sum(octet_length(o.payload)), 0) from outbox o
         where o.appservice_id = s.appservice_id
           and o.position between s.first_position and s.last_position)
  from sealed s
 where s.appservice_id = $1 and s.number = $2 and s.items > 0
on conflict do nothing
"""

RELEASE: Final = """
-- kept.release: of the $2 oldest those whose time is over, or all with $4. What was acknowledged
-- while the clock was ahead is not kept for longer.
delete from kept k
 using (select number from kept where appservice_id = $1 order by first_position limit $2) oldest
 where k.appservice_id = $1 and k.number = oldest.number
   and ($4 or k.acked_at not between clock_timestamp() - make_interval(secs => $3)
                                 and clock_timestamp() + interval '1 hour')
"""

KEPT_FROM: Final = """
-- kept.kept_from: not by number, for parts of what was split have higher ones than what follows
select first_position from kept where appservice_id = $1 order by first_position limit 1
"""

NOTE_INBOX: Final = """
-- kept.note_inbox: rows of the inbox that these delivered may be cleaned out, now and only once
with told as (
    update kept k set noted = true
      from (select number from kept where appservice_id = $1 and not noted
             order by number limit $2) n
     where k.appservice_id = $1 and k.number = n.number and not k.noted
    returning k.first_position, k.last_position
), forgot as (
    update outbox o set stream_id = null
      from (select p.* from told t
              join outbox p on p.appservice_id = $1
               and p.position between t.first_position and t.last_position
             where p.kind = 'to_device' and p.stream_id is not null) was
     where o.appservice_id = $1 and o.position = was.position
    returning was.user_id, was.device_id, was.stream_id
), noted as (
    insert into inbox_delivered (appservice_id, user_id, device_id, stream_id)
    select $1, user_id, device_id, stream_id from forgot
    on conflict do nothing
)
select count(*) from told
"""

OF_TXN_ID: Final = """
-- kept.of_txn_id
select number from kept
 where appservice_id = $1 and txn_id = $2
   and acked_at > clock_timestamp() - make_interval(secs => $3)
"""

SINCE: Final = """
-- kept.since
select number from kept
 where appservice_id = $1 and acked_at > clock_timestamp() - make_interval(secs => $2)
 order by first_position
"""

REPLAY: Final = """
-- kept.replay: at the end, as what just came; the inbox's rows were told of at the first delivery
with of as (
    select first_position, last_position from kept
     where appservice_id = $1 and number = $2 for share
), item as (
    select o.kind, o.user_id, o.device_id, o.payload,
           row_number() over (order by o.position) as place
      from of join outbox o on o.appservice_id = $1
       and o.position between of.first_position and of.last_position
     where o.kind <> 'dropped'
), head as (
    update outbox_head h set position = h.position + n.items, bytes_in = h.bytes_in + n.bytes
      from (select count(*) as items, coalesce(sum(octet_length(payload)), 0) as bytes
              from item) n
     where h.appservice_id = $1
    returning h.position - n.items as before
), added as (
    insert into outbox (appservice_id, position, kind, user_id, device_id, captured_at, payload)
    select $1, head.before + i.place, i.kind, i.user_id, i.device_id, clock_timestamp(), i.payload
      from item i cross join head
    returning kind
)
select kind, count(*) as items from added group by kind
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """For how long an appservice's delivered transactions are kept now.

    Attributes:
        seconds: since the ack; 0: not at all.
        no_room: not even so long, for what waits needs the room.
    """

    seconds: float = 0.0
    no_room: bool = False


async def keep(conn: Connection, lease: Lease, *, number: int) -> None:
    """Let the items of a transaction stay when it is acknowledged, which must follow at once."""
    await conn.execute(KEEP, lease.appservice_id, number)


async def release(conn: Connection, appservice_id: str, term: Term, *, most: int) -> int | None:
    """Give up so many at most whose time is over; from which position on the rest is kept.

    None: nothing is. What was given up is purged like anything that was acknowledged.
    """
    await conn.execute(RELEASE, appservice_id, most, term.seconds, term.no_room)
    kept_from: int | None = await conn.fetchval(KEPT_FROM, appservice_id)
    return kept_from


async def note_inbox(conn: Connection, appservice_id: str, *, most: int) -> int:
    """Note for the cleaner what so many at most brought; returns how many transactions it was.

    The homeserver's copy needs not wait until ours goes.
    """
    return int(await conn.fetchval(NOTE_INBOX, appservice_id, most))


async def of_txn_id(
    conn: Connection, appservice_id: str, txn_id: str, *, keep_seconds: float
) -> list[int]:
    """The transaction with this id, as a list of one, if it is kept."""
    rows = await conn.fetch(OF_TXN_ID, appservice_id, txn_id, keep_seconds)
    return [row["number"] for row in rows]


async def since(conn: Connection, appservice_id: str, *, seconds: float) -> list[int]:
    """What was acknowledged within the last so many seconds and is kept, in order."""
    return [row["number"] for row in await conn.fetch(SINCE, appservice_id, seconds)]


async def replay(conn: Connection, appservice_id: str, number: int) -> dict[Kind, int]:
    """Append the items of a kept transaction to the outbox once more; how many of each kind.

    Only while no intake routes, for both write the head. Empty: it is not kept any more.
    """
    rows = await conn.fetch(REPLAY, appservice_id, number)
    return {Kind(row["kind"]): row["items"] for row in rows}
