"""What is routed and not yet acknowledged, in order; purged by range behind the ack."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.expiry import Waited
from appservice_bridge.domain.transaction import Item, Kind
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.repeats import InboxKey

APPEND: Final = """
-- outbox.append: the next positions of each appservice, in the order given
with item as (
    select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[],
                         $6::float8[], $7::bytea[], $8::text[]) with ordinality
        as i(appservice_id, kind, user_id, device_id, stream_id, captured_at, payload, fleeting,
             place)
), head as (
    update outbox_head h set position = h.position + n.items, bytes_in = h.bytes_in + n.bytes
      from (select appservice_id, count(*) as items, sum(octet_length(payload)) as bytes
              from item group by appservice_id) n
     where h.appservice_id = n.appservice_id
    returning h.appservice_id, h.position - n.items as before
)
insert into outbox (appservice_id, position, kind, user_id, device_id, stream_id, captured_at,
                    payload, fleeting)
select i.appservice_id,
       head.before + row_number() over (partition by i.appservice_id order by i.place),
       i.kind, i.user_id, i.device_id, i.stream_id, to_timestamp(i.captured_at), i.payload,
       i.fleeting
  from item i join head using (appservice_id)
"""

EXISTING: Final = """
-- outbox.existing
select appservice_id from outbox_head where appservice_id = any($1::text[])
"""

NEXT_ITEMS: Final = """
-- outbox.next_items: what is not sealed yet, up to $3 items, about $4 bytes, and position $5; how
-- long it waited is told of those that may expire, and of so many that the age of all is known
select position, kind, payload, fleeting,
       case when fleeting is not null or position = $2 + 1 or position % 64 = 0
            then extract(epoch from clock_timestamp() - captured_at)::float8 end as waited_seconds
  from (select o.*, sum(octet_length(payload)) over (order by position rows unbounded preceding)
                    - octet_length(payload) as bytes_before
          from (select position, kind, payload, fleeting, captured_at from outbox
                 where appservice_id = $1 and position > $2 and position <= $5
                 order by position limit $3) o) n
 where bytes_before < $4
 order by position
"""

SEALED_ITEMS: Final = """
-- outbox.sealed_items
select position, kind, payload,
       extract(epoch from clock_timestamp() - captured_at)::float8 as waited_seconds
  from outbox
 where appservice_id = $1 and position between $2 and $3 and kind <> 'dropped' order by position
"""

DROP_DELETED: Final = """
-- outbox.drop_deleted: messages to devices that were deleted after they were routed
with dropped as (
    update outbox o set kind = 'dropped', payload = ''
      from (select * from outbox
             where appservice_id = $1 and position > $2 order by position limit $3) next
      join deleted_device d using (appservice_id, user_id, device_id)
     where next.kind = 'to_device'
       and (next.position <= d.upto
            or next.position <= d.needed_to and next.stream_id <= d.inbox_upto)
       and o.appservice_id = next.appservice_id and o.position = next.position
    returning octet_length(next.payload) as bytes
)
select count(*) as items, coalesce(sum(bytes), 0)::bigint as bytes from dropped
"""

PURGEABLE: Final = """
-- outbox.purgeable
select appservice_id, purged_to, acked_to,
       exists (select from kept k where k.appservice_id = lane.appservice_id) as keeps
  from lane where acked_to > purged_to
 order by appservice_id
"""

PURGE: Final = """
-- outbox.purge: with $4 the rows of the inbox that this delivered may be cleaned out
with gone as (
    delete from outbox where appservice_id = $1 and position > $2 and position <= $3
    returning appservice_id, kind, user_id, device_id, stream_id, octet_length(payload) as bytes
), noted as (
    insert into inbox_delivered (appservice_id, user_id, device_id, stream_id)
    select appservice_id, user_id, device_id, stream_id from gone
     where $4 and kind = 'to_device' and stream_id is not null
    on conflict do nothing
)
select count(*) as items, coalesce(sum(bytes), 0)::bigint as bytes from gone
"""

MOVE_PURGED: Final = """
-- outbox.move_purged: what another purger deleted meanwhile is counted by that one
update lane set purged_to = greatest(purged_to, $2), bytes_out = bytes_out + $3
 where appservice_id = $1
"""

INBOX_KEYS: Final = """
-- outbox.inbox_keys
select position, user_id, device_id, stream_id from outbox
 where appservice_id = $1 and position = any($2::bigint[])
"""

FILL: Final = """
-- outbox.fill
update outbox o set payload = f.payload
  from unnest($2::bigint[], $3::bytea[]) as f(position, payload)
 where o.appservice_id = $1 and o.position = f.position
"""

DROP: Final = """
-- outbox.drop
update outbox set kind = 'dropped', payload = ''
 where appservice_id = $1 and position = any($2::bigint[])
"""

COUNT_OUT: Final = """
-- outbox.count_out
update lane set bytes_out = bytes_out + $2 where appservice_id = $1
"""


LAST_POSITION: Final = 2**63 - 1
KINDS: Final = {str(kind): kind for kind in Kind}


class OutboxMissingError(BridgeError):
    """An appservice without an outbox was routed to; roll back, and end the worker.

    Announcing makes the outbox of every registration that intake routes by, so this is a fault
    of ours or another hand in the tables.
    """

    def __init__(self, appservice_ids: Sequence[str]) -> None:
        super().__init__(f"routed to {', '.join(appservice_ids)}, and not all have an outbox")
        self.appservice_ids = appservice_ids


class Routed(NamedTuple):
    """One item on its way into the outbox of one appservice.

    Attributes:
        captured_at: in seconds since 1970.
        fleeting: the type of an event that has a time to live.
    """

    appservice_id: str
    kind: str
    captured_at: float
    payload: bytes
    user_id: str | None = None
    device_id: str | None = None
    stream_id: int | None = None
    fleeting: str | None = None

    def __repr__(self) -> str:
        return f"Routed({self.appservice_id}, {self.kind}, {len(self.payload)} bytes)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Purgeable:
    """Positions above `purged_to` and up to `acked_to` are delivered and still stored.

    Attributes:
        keeps: some of them are kept for a replay.
    """

    appservice_id: str
    purged_to: int
    acked_to: int
    keeps: bool = False


async def append(conn: Connection, items: Sequence[Routed]) -> None:
    """Give every item the next position of its appservice, in the order given.

    Raises:
        OutboxMissingError: an appservice was routed to that has none.
    """
    done = await conn.execute(
        APPEND,
        [item.appservice_id for item in items],
        [item.kind for item in items],
        [item.user_id for item in items],
        [item.device_id for item in items],
        [item.stream_id for item in items],
        [item.captured_at for item in items],
        [item.payload for item in items],
        [item.fleeting for item in items],
    )
    if done != f"INSERT 0 {len(items)}":
        raise OutboxMissingError(sorted({item.appservice_id for item in items}))


async def existing(conn: Connection, appservice_ids: Collection[str]) -> frozenset[str]:
    """Those of these that have an outbox: registered, or withdrawn and not removed."""
    rows = await conn.fetch(EXISTING, sorted(appservice_ids))
    return frozenset(row["appservice_id"] for row in rows)


async def next_items(
    conn: Connection,
    appservice_id: str,
    *,
    after: int,
    upto: int = LAST_POSITION,
    max_items: int,
    max_bytes: int,
) -> list[Item]:
    """What waits above a position, in order: so many items at most, one more than so many bytes."""
    rows = await conn.fetch(NEXT_ITEMS, appservice_id, after, max_items, max_bytes, upto)
    now = time.monotonic()
    return [
        Item(
            position,
            KINDS[kind],
            payload,
            fleeting and Waited(fleeting, seconds),
            None if seconds is None else now - seconds,
        )
        for position, kind, payload, fleeting, seconds in rows
    ]


async def drop_deleted(conn: Connection, appservice_id: str, *, after: int, max_items: int) -> int:
    """Empty what waits for deleted devices among the next items; returns how many.

    Only for who holds the lane's row: what is sealed must not change.
    """
    dropped = await conn.fetchrow(DROP_DELETED, appservice_id, after, max_items)
    items, bytes_ = dropped or (0, 0)
    if items:
        await count_out(conn, appservice_id, bytes_)
    return int(items)


async def sealed_items(
    conn: Connection, appservice_id: str, *, first: int, last: int
) -> list[Item]:
    """The items of a sealed transaction, by its first and last position."""
    rows = await conn.fetch(SEALED_ITEMS, appservice_id, first, last)
    now = time.monotonic()
    return [
        Item(position, KINDS[kind], payload, None, now - seconds)
        for position, kind, payload, seconds in rows
    ]


async def purgeable(conn: Connection) -> list[Purgeable]:
    """Where delivered items are still stored."""
    return [Purgeable(**row) for row in await conn.fetch(PURGEABLE)]


async def purge(conn: Connection, delivered: Purgeable, *, upto: int, clean: bool) -> int:
    """Delete delivered items up to a position; returns how many. Another purger does no harm.

    With `clean` their rows of the homeserver's inbox are noted for the cleaner: only here, where
    their ack is committed.
    """
    bounds = (delivered.appservice_id, delivered.purged_to, upto)
    purged = await conn.fetchrow(PURGE, *bounds, clean)
    items, bytes_ = purged or (0, 0)
    await conn.execute(MOVE_PURGED, delivered.appservice_id, upto, bytes_)
    return int(items)


async def inbox_keys(
    conn: Connection, appservice_id: str, positions: Sequence[int]
) -> dict[int, InboxKey]:
    """Under which keys the homeserver holds the messages at these positions."""
    rows = await conn.fetch(INBOX_KEYS, appservice_id, positions)
    return {
        row["position"]: InboxKey(row["user_id"], row["device_id"], row["stream_id"])
        for row in rows
    }


async def fill(conn: Connection, appservice_id: str, payloads: Mapping[int, bytes]) -> None:
    """Write payloads that were left out until now, by position.

    Only for who holds the lane's row: what is sealed must not change.
    """
    await conn.execute(FILL, appservice_id, list(payloads), list(payloads.values()))
    await count_out(conn, appservice_id, -sum(map(len, payloads.values())))


async def drop(conn: Connection, appservice_id: str, positions: Sequence[int]) -> None:
    """Nothing is left to send at these positions; who stored their payloads counts them out.

    Only for who holds the lane's row: what is sealed must not change.
    """
    await conn.execute(DROP, appservice_id, positions)


async def count_out(conn: Connection, appservice_id: str, bytes_out: int) -> None:
    """So many bytes of payload wait no more; negative: they wait, and did not come through intake.

    Only for who holds the lane's row, or deletes behind it.
    """
    await conn.execute(COUNT_OUT, appservice_id, bytes_out)
