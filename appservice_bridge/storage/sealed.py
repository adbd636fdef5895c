"""Sealed transactions: every write is fenced by the lease's token."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from appservice_bridge.domain.transaction import (
    AlteredTransactionError,
    Frame,
    Item,
    Kind,
    digest,
)
from appservice_bridge.storage import device_updates, outbox
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.leases import Lease, LeaseLostError

IN_FLIGHT: Final = """
-- sealed.in_flight: the first that is not acknowledged; more than one only after a split
select number, txn_id, first_position, last_position, slots, frame, digest,
       device_lists, device_keys, attempt_open, doubtful, refusals, refused_since, part_of
  from sealed where appservice_id = $1 order by first_position, last_position, number limit 1
"""

INSERT: Final = """
-- sealed.insert: only for who holds the lane; what a part is sealed from was sealed before
with moved as (
    update lane set sealed_to = greatest(sealed_to, $6), next_number = next_number + 1
     where appservice_id = $1 and lease_token = $2 and next_number = $3
    returning appservice_id
)
insert into sealed (appservice_id, number, txn_id, first_position, last_position, items,
                    body_bytes, builder, slots, frame, digest, device_lists, device_keys,
                    attempt_open, doubtful, refusals, refused_since, part_of)
select appservice_id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19
  from moved
"""

REPLACE: Final = """
-- sealed.replace: only for who holds the lane
delete from sealed s using lane l
 where s.appservice_id = $1 and s.number = $3
   and l.appservice_id = $1 and l.lease_token = $2
"""

ACK: Final = """
-- sealed.ack: only for who holds the lane, and once; counts what was delivered by kind
with gone as (
    delete from sealed where appservice_id = $1 and number = $3 returning last_position
), acked as (
    update lane
       set acked_to = gone.last_position, failed_attempts = 0, failing_since = null,
           due_at = '-infinity', last_outcome = 'acked', last_status = $4,
           last_attempt_at = clock_timestamp(), last_ack_at = clock_timestamp(),
           split_asked_at = null
      from gone
     where appservice_id = $1 and lease_token = $2
    returning appservice_id
)
insert into ledger (appservice_id, kind, outcome, items)
select appservice_id, n.kind, 'delivered', n.items
  from acked, unnest($5::text[], $6::bigint[]) as n(kind, items)
on conflict (appservice_id, kind, outcome) do update set items = ledger.items + excluded.items
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A frozen transaction: the same id and bytes until the appservice takes it, or it is replaced.

    Attributes:
        first_position: of its items; above `last_position` if it has none.
        kinds: how many items of each kind.
        device_lists: how many users it names in its device lists.
        device_keys: of how many devices it tells the counts.
        attempt_open: an attempt has begun, or may begin without another write.
        doubtful: some attempt that ended may have been processed.
        refusals: that count against it; the first of them came at `refused_since`.
        part_of: the number of the transaction that it was split off.
        cut: when it was sealed here, more waited than fit into it.
        captured: when its first and last item were, by this process's `time.monotonic()`; about.
    """

    number: int
    txn_id: str
    first_position: int
    last_position: int
    kinds: Mapping[Kind, int]
    device_lists: int = 0
    device_keys: int = 0
    attempt_open: bool = True
    doubtful: bool = False
    refusals: int = 0
    refused_since: datetime | None = None
    part_of: int | None = None
    cut: bool = False
    captured: tuple[float, float] | None = field(default=None, compare=False)
    body: bytes = field(repr=False)

    @property
    def items(self) -> int:
        """How many it brings."""
        return sum(self.kinds.values())

    @property
    def updates(self) -> int:
        """Of how many users and devices it tells."""
        return self.device_lists + self.device_keys


async def in_flight(conn: Connection, lease: Lease) -> Sealed:
    """The transaction that is owed to the appservice, rebuilt from its seal.

    Raises:
        AlteredTransactionError: its bytes are not those that were sealed, or the seal is gone;
            nothing must be sent.
    """
    row = await conn.fetchrow(IN_FLIGHT, lease.appservice_id)
    if row is None:
        raise AlteredTransactionError("without a seal")
    items = await outbox.sealed_items(
        conn, lease.appservice_id, first=row["first_position"], last=row["last_position"]
    )
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
        device_lists=row["device_lists"],
        device_keys=row["device_keys"],
        attempt_open=row["attempt_open"],
        doubtful=row["doubtful"],
        refusals=row["refusals"],
        refused_since=row["refused_since"],
        part_of=row["part_of"],
        captured=captured(items),
        body=body,
    )


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
        sealed.items,
        len(sealed.body),
        builder,
        list(frame.slots),
        list(frame.pieces),
        digest(sealed.body),
        sealed.device_lists,
        sealed.device_keys,
        sealed.attempt_open,
        sealed.doubtful,
        sealed.refusals,
        sealed.refused_since,
        sealed.part_of,
    )
    if done != "INSERT 0 1":
        raise LeaseLostError(lease.appservice_id)


async def replace(conn: Connection, lease: Lease, sealed: Sealed) -> None:
    """Forget a transaction, in the DB transaction that puts something in its place.

    Raises:
        LeaseLostError: someone else holds the lane, or replaced this already.
    """
    done = await conn.execute(REPLACE, lease.appservice_id, lease.token, sealed.number)
    if done != "DELETE 1":
        raise LeaseLostError(lease.appservice_id)


async def ack(conn: Connection, lease: Lease, sealed: Sealed, *, status: int) -> None:
    """Record that the appservice took the transaction; its items may be purged from now on.

    Raises:
        LeaseLostError: someone else holds the lane, or acknowledged this already.
    """
    if sealed.updates:
        await device_updates.ack(conn, lease.appservice_id, number=sealed.number)
    delivered = counts(sealed)
    done = await conn.execute(
        ACK,
        lease.appservice_id,
        lease.token,
        sealed.number,
        status,
        list(delivered),
        list(delivered.values()),
    )
    if done != f"INSERT 0 {len(delivered)}":
        raise LeaseLostError(lease.appservice_id)


def counts(sealed: Sealed) -> dict[str, int]:
    """What it delivers, by kind and in the order of kinds: items, users and devices."""
    brings = {str(kind): items for kind, items in sealed.kinds.items()}
    brings |= {"device_list": sealed.device_lists, "device_keys": sealed.device_keys}
    return {kind: items for kind, items in sorted(brings.items()) if items}


def count_kinds(items: Sequence[Item]) -> dict[Kind, int]:
    """How many items of each kind that is sent."""
    counts = Counter(item.kind for item in items)
    del counts[Kind.DROPPED]
    return counts


def captured(items: Sequence[Item]) -> tuple[float, float] | None:
    """When the first and the last were captured of whom that is known; None: of nobody."""
    of = (item.captured for item in items if item.captured is not None)
    first = next(of, None)
    if first is None:
        return None
    return first, next(item.captured for item in reversed(items) if item.captured is not None)
