"""Sealed transactions and the lane's own row: every write is fenced by the lease's token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import asyncpg

from appservice_bridge.domain.transaction import (
    AlteredTransactionError,
    Frame,
    Item,
    Kind,
    digest,
)
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.leases import Lease, LeaseLostError

HOLD_LANE: Final = """
-- sealed.hold_lane
select epoch, next_number, sealed_to, acked_to, failed_attempts,
       greatest(0, extract(epoch from due_at)::float8
                 - extract(epoch from clock_timestamp())::float8) as rest_seconds
  from lane where appservice_id = $1 and lease_token = $2 for update
"""

IN_FLIGHT: Final = """
-- sealed.in_flight: the oldest that is not acknowledged
select number, txn_id, first_position, last_position, items, slots, frame, digest, builder
  from sealed where appservice_id = $1 order by number limit 1
"""

SEALED_ITEMS: Final = """
-- sealed.items
select position, kind, payload from outbox
 where appservice_id = $1 and position between $2 and $3 order by position
"""

NEXT_ITEMS: Final = """
-- sealed.next_items: what is not sealed yet, up to $3 items and about $4 bytes
select position, kind, payload
  from (select o.*, sum(octet_length(payload)) over (order by position)
                    - octet_length(payload) as bytes_before
          from (select * from outbox where appservice_id = $1 and position > $2
                 order by position limit $3) o) n
 where bytes_before < $4
 order by position
"""

INSERT: Final = """
-- sealed.insert: only for who holds the lane
with moved as (
    update lane set sealed_to = $6, next_number = next_number + 1
     where appservice_id = $1 and lease_token = $2
    returning appservice_id
)
insert into sealed (appservice_id, number, txn_id, first_position, last_position, items,
                    body_bytes, builder, slots, frame, digest)
select appservice_id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12 from moved
"""

ACK: Final = """
-- sealed.ack: only for who holds the lane, and once; counts what was delivered by kind
with gone as (
    delete from sealed where appservice_id = $1 and number = $3 returning last_position
), acked as (
    update lane
       set acked_to = gone.last_position, failed_attempts = 0, failing_since = null,
           due_at = '-infinity', last_outcome = 'acked', last_status = $4,
           last_attempt_at = clock_timestamp(), last_ack_at = clock_timestamp()
      from gone
     where appservice_id = $1 and lease_token = $2
    returning appservice_id
)
insert into ledger (appservice_id, kind, outcome, items)
select appservice_id, n.kind, 'delivered', n.items
  from acked, unnest($5::text[], $6::bigint[]) as n(kind, items)
on conflict (appservice_id, kind, outcome) do update set items = ledger.items + excluded.items
"""

REST: Final = """
-- sealed.rest: a lane that was woken during the attempt ($6 seconds) does not rest after it
update lane
   set due_at = case when woken_at > clock_timestamp() - make_interval(secs => $6)
                     then clock_timestamp()
                     else clock_timestamp() + make_interval(secs => $3) end,
       failed_attempts = failed_attempts + 1,
       failing_since = coalesce(failing_since, clock_timestamp()),
       last_outcome = $4, last_status = $5, last_attempt_at = clock_timestamp()
 where appservice_id = $1 and lease_token = $2
returning greatest(0, extract(epoch from due_at)::float8
                 - extract(epoch from clock_timestamp())::float8)
"""

HALT: Final = """
-- sealed.halt: until an operator looks
update lane set due_at = 'infinity', last_outcome = $3
 where appservice_id = $1 and lease_token = $2
"""

WAKE: Final = """
-- sealed.wake
update lane set due_at = '-infinity', woken_at = clock_timestamp() where appservice_id = $1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneState:
    """A lane's own row, locked until the DB transaction ends.

    Attributes:
        sealed_to: every position up to it is in a sealed transaction, or was.
        acked_to: every position up to it was delivered.
        failed_attempts: since the last ack.
        rest_seconds: how long the lane still rests; 0 when it is due.
    """

    epoch: str
    next_number: int
    sealed_to: int
    acked_to: int
    failed_attempts: int
    rest_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A frozen transaction: the same id and bytes until the appservice takes it."""

    number: int
    txn_id: str
    first_position: int
    last_position: int
    kinds: Mapping[Kind, int]
    body: bytes = field(repr=False)


async def hold_lane(conn: Connection, lease: Lease) -> LaneState:
    """Lock the lane's row.

    Raises:
        LeaseLostError: someone else holds the lane.
    """
    row = await conn.fetchrow(HOLD_LANE, lease.appservice_id, lease.token)
    if row is None:
        raise LeaseLostError(lease.appservice_id)
    return LaneState(**row)


async def in_flight(conn: Connection, lease: Lease) -> Sealed:
    """The transaction that is owed to the appservice, rebuilt from its seal.

    Raises:
        AlteredTransactionError: its bytes are not those that were sealed, or the seal is gone;
            nothing must be sent.
    """
    row = await conn.fetchrow(IN_FLIGHT, lease.appservice_id)
    if row is None:
        raise AlteredTransactionError("without a seal")
    bounds = (lease.appservice_id, row["first_position"], row["last_position"])
    items = [_item(found) for found in await conn.fetch(SEALED_ITEMS, *bounds)]
    frame = Frame(pieces=tuple(row["frame"]), slots=tuple(Kind(kind) for kind in row["slots"]))
    body = frame.splice(items)
    if digest(body) != row["digest"]:
        raise AlteredTransactionError(row["txn_id"])
    return Sealed(
        number=row["number"],
        txn_id=row["txn_id"],
        first_position=row["first_position"],
        last_position=row["last_position"],
        kinds=count_kinds(items),
        body=body,
    )


async def next_items(
    conn: Connection, lease: Lease, state: LaneState, *, max_items: int, max_bytes: int
) -> list[Item]:
    """What waits unsealed, in order: at most so many items, and one more than so many bytes."""
    rows = await conn.fetch(NEXT_ITEMS, lease.appservice_id, state.sealed_to, max_items, max_bytes)
    return [_item(row) for row in rows]


async def insert(
    conn: Connection, lease: Lease, sealed: Sealed, frame: Frame, *, builder: int
) -> None:
    """Freeze a transaction; the lane's row must be held.

    Raises:
        LeaseLostError: someone else holds the lane.
    """
    done = await conn.execute(
        INSERT,
        lease.appservice_id,
        lease.token,
        sealed.number,
        sealed.txn_id,
        sealed.first_position,
        sealed.last_position,
        sum(sealed.kinds.values()),
        len(sealed.body),
        builder,
        list(frame.slots),
        list(frame.pieces),
        digest(sealed.body),
    )
    if done != "INSERT 0 1":
        raise LeaseLostError(lease.appservice_id)


async def ack(conn: Connection, lease: Lease, sealed: Sealed, *, status: int) -> None:
    """Record that the appservice took the transaction; its items may be purged from now on.

    Raises:
        LeaseLostError: someone else holds the lane, or acknowledged this already.
    """
    kinds = sorted(sealed.kinds)
    done = await conn.execute(
        ACK,
        lease.appservice_id,
        lease.token,
        sealed.number,
        status,
        kinds,
        [sealed.kinds[kind] for kind in kinds],
    )
    if done != f"INSERT 0 {len(kinds)}":
        raise LeaseLostError(lease.appservice_id)


async def rest(
    conn: Connection,
    lease: Lease,
    *,
    rest_seconds: float,
    attempt_seconds: float,
    outcome: str,
    status: int | None,
) -> float:
    """Record a failed attempt; returns the seconds until the lane is due again.

    Raises:
        LeaseLostError: someone else holds the lane.
    """
    due_in: float | None = await conn.fetchval(
        REST,
        lease.appservice_id,
        lease.token,
        rest_seconds,
        outcome,
        status,
        attempt_seconds,
    )
    if due_in is None:
        raise LeaseLostError(lease.appservice_id)
    return due_in


async def halt(conn: Connection, lease: Lease, *, outcome: str) -> None:
    """Stop a lane whose seal does not hold; only a wake makes it try again.

    Raises:
        LeaseLostError: someone else holds the lane.
    """
    if await conn.execute(HALT, lease.appservice_id, lease.token, outcome) != "UPDATE 1":
        raise LeaseLostError(lease.appservice_id)


async def wake(conn: Connection, appservice_id: str) -> bool:
    """End a lane's rest, whoever holds it; False if there is no such lane."""
    return await conn.execute(WAKE, appservice_id) == "UPDATE 1"


def count_kinds(items: Sequence[Item]) -> dict[Kind, int]:
    """How many items of each kind."""
    counts: dict[Kind, int] = {}
    for item in items:
        counts[item.kind] = counts.get(item.kind, 0) + 1
    return counts


def _item(row: asyncpg.Record) -> Item:
    return Item(position=row["position"], kind=Kind(row["kind"]), payload=row["payload"])
