"""What waits first for an appservice, without a byte of it; lanes freed of workers that died."""

from dataclasses import dataclass
from typing import Final

from appservice_bridge.storage.database import Connection

HEAD: Final = """
-- waiting.head
select o.position, o.kind, o.user_id, o.device_id, octet_length(o.payload) as bytes,
       o.position <= l.sealed_to as sealed,
       extract(epoch from clock_timestamp() - o.captured_at)::float8 as waited_seconds
  from outbox o join lane l using (appservice_id)
 where o.appservice_id = $1 and o.position > l.acked_to
 order by o.position limit $2
"""

FREE: Final = """
-- waiting.free
with freed as (update lane set worker_id = null where worker_id is not null)
delete from worker
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """One item of an outbox that is not acknowledged.

    Attributes:
        user_id, device_id: whom a to-device message is for; None for what goes to all.
        bytes: of its payload; 0 where only its key is stored.
        sealed: it is in a transaction that is being sent.
    """

    position: int
    kind: str
    user_id: str | None
    device_id: str | None
    bytes: int
    sealed: bool
    waited_seconds: float


async def head(conn: Connection, appservice_id: str, *, most: int) -> list[Waiting]:
    """The first of what waits."""
    return [Waiting(**row) for row in await conn.fetch(HEAD, appservice_id, most)]


async def free_lanes_of_the_dead(conn: Connection) -> None:
    """Spare the next worker the wait for leases; only for who has seen every worker end."""
    await conn.execute(FREE)
