"""How much waits and went out, of every lane, for whoever draws it over time."""

from dataclasses import dataclass
from typing import Final

from appservice_bridge.storage.database import Connection

TAKE: Final = """
-- samples.take
select l.appservice_id, extract(epoch from clock_timestamp())::float8 as at,
       h.position - l.acked_to as waiting, coalesce(g.items, 0)::bigint as delivered,
       l.failed_attempts,
       extract(epoch from clock_timestamp() - (
           select captured_at from outbox o
            where o.appservice_id = l.appservice_id and o.position > l.acked_to
            order by o.position limit 1))::float8 as oldest_seconds
  from lane l
  join outbox_head h using (appservice_id)
  left join (select appservice_id, sum(items) as items from ledger
              where outcome = 'delivered' group by appservice_id) g using (appservice_id)
 order by l.appservice_id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One lane at one moment.

    Attributes:
        at: by Postgres' clock, in seconds.
        waiting: items routed and not acknowledged.
        delivered: items acknowledged, ever.
        failed_attempts: since the last ack.
        oldest_seconds: age of the oldest that waits; None if nothing does.
    """

    appservice_id: str
    at: float
    waiting: int
    delivered: int
    failed_attempts: int
    oldest_seconds: float | None


async def take(conn: Connection) -> list[Sample]:
    """Every lane now, by appservice."""
    return [Sample(**row) for row in await conn.fetch(TAKE)]
