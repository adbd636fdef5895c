"""The outbox behind the ack: purged by range, never without a lower bound."""

from dataclasses import dataclass
from typing import Final

from appservice_bridge.storage.database import Connection

PURGEABLE: Final = """
-- outbox.purgeable
select appservice_id, purged_to, acked_to from lane where acked_to > purged_to
 order by appservice_id
"""

PURGE: Final = """
-- outbox.purge
delete from outbox where appservice_id = $1 and position > $2 and position <= $3
"""

MOVE_PURGED: Final = """
-- outbox.move_purged
update lane set purged_to = $3 where appservice_id = $1 and purged_to = $2
"""

NOTIFY: Final = """
-- outbox.notify
select pg_notify('appservice_bridge_outbox', '')
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """Positions above `purged_to` and up to `acked_to` are delivered and still stored."""

    appservice_id: str
    purged_to: int
    acked_to: int


async def purgeable(conn: Connection) -> list[Delivered]:
    """Where delivered items are still stored."""
    return [Delivered(**row) for row in await conn.fetch(PURGEABLE)]


async def purge(conn: Connection, delivered: Delivered, *, upto: int) -> int:
    """Delete delivered items up to a position; returns how many. Another purger does no harm."""
    bounds = (delivered.appservice_id, delivered.purged_to, upto)
    done = await conn.execute(PURGE, *bounds)
    await conn.execute(MOVE_PURGED, *bounds)
    return int(done.split()[1])


async def notify(conn: Connection) -> None:
    """Tell workers that hold other lanes that an outbox grew; a courtesy, they look anyway."""
    await conn.execute(NOTIFY)
