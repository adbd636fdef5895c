"""An appservice's transactions as an operator sees them: owed, and kept after their ack."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from appservice_bridge.storage.database import Connection

NEWEST: Final = """
-- shipments.newest: below $2, the newest first; kinds are those of the items that are still there
select t.*,
       (select coalesce(json_object_agg(k.kind, k.items), '{}')::text
          from (select o.kind, count(*) as items from outbox o
                 where o.appservice_id = $1 and o.position between t.first_position
                                                               and t.last_position
                 group by o.kind) k) as kinds
  from ((select s.number, s.txn_id, s.items, s.first_position, s.last_position, s.device_lists,
                s.device_keys, s.body_bytes as bytes, s.sealed_at, null::timestamptz as acked_at,
                s.refusals, s.doubtful, s.part_of
           from sealed s where s.appservice_id = $1 and s.number < $2
          order by s.number desc limit $3)
        union all
        (select k.number, k.txn_id, k.items, k.first_position, k.last_position, null, null,
                k.payload_bytes, null, k.acked_at, null, null, null
           from kept k where k.appservice_id = $1 and k.number < $2
          order by k.number desc limit $3)
         order by number desc limit $3) t
 order by t.number desc
"""

FIRST: Final = """
-- shipments.first: the one in flight
select number from sealed where appservice_id = $1
 order by first_position, last_position, number limit 1
"""

LAST_NUMBER: Final = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipment:
    """One transaction, without what is in it.

    Attributes:
        kinds: JSON, items by kind.
        device_lists: users it names; `device_keys`: devices it counts. None once it was acked.
        bytes: of the body; once it was acked, of its items.
        acked_at: None: the appservice owes the ack.
    """

    number: int
    txn_id: str
    items: int
    first_position: int
    last_position: int
    device_lists: int | None
    device_keys: int | None
    bytes: int
    sealed_at: datetime | None
    acked_at: datetime | None
    refusals: int | None
    doubtful: bool | None
    part_of: int | None
    kinds: str


async def newest(
    conn: Connection, appservice_id: str, *, before: int, most: int
) -> tuple[list[Shipment], int | None]:
    """The newest with a lower number than `before`; and the number of the one in flight."""
    rows = await conn.fetch(NEWEST, appservice_id, before, most)
    first: int | None = await conn.fetchval(FIRST, appservice_id)
    return [Shipment(**row) for row in rows], first
