"""What operators say of a lane: it goes on at once, splits or buries what it holds, pauses."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.nearest import hint
from appservice_bridge.storage import lanes, notifications
from appservice_bridge.storage.database import Connection

KNOWN: Final = """
-- orders.known
select appservice_id from lane order by appservice_id
"""

LOCK: Final = """
-- orders.lock: alone, for what is asked after it has to see what its last holder was committing
select from lane where appservice_id = $1 for update
"""

LOOK: Final = """
-- orders.look
select l.paused_at, exists (select from sealed s where s.appservice_id = $1) as in_flight,
       exists (select from worker w where w.worker_id = l.worker_id
                  and w.alive_until
                  between clock_timestamp() and clock_timestamp() + interval '1 minute') as served
  from lane l where l.appservice_id = $1 for update of l
"""

ASK_SPLIT: Final = """
-- orders.ask_split
update lane set split_asked_at = clock_timestamp() where appservice_id = $1
"""

ASK_BURY: Final = """
-- orders.ask_bury: only for who holds the lane's row; one that is being acknowledged is left alone
with here as (
    select appservice_id, number from sealed
     where appservice_id = $1 and number = $2 for update skip locked
)
update sealed s set bury_asked_at = coalesce(s.bury_asked_at, clock_timestamp())
  from here h where s.appservice_id = h.appservice_id and s.number = h.number
"""

PAUSE: Final = """
-- orders.pause: one that is paused stays so since then
update lane set paused_at = coalesce(paused_at, clock_timestamp()) where appservice_id = $1
"""

RESUME: Final = """
-- orders.resume
update lane set paused_at = null where appservice_id = $1
"""


class UnknownAppserviceError(BridgeError):
    """No appservice has this id; the error names the one that was meant, or those there are."""

    def __init__(self, appservice_id: str, known: Iterable[str]) -> None:
        known = list(known)
        none = "there is none: start `appservice-bridge run` once with its registration"
        super().__init__(
            f"no appservice {appservice_id}; {hint(appservice_id, known) if known else none}"
        )
        self.appservice_id = appservice_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a lane stands when an order is given.

    Attributes:
        paused_at: since when; None: it is not paused.
        in_flight: a transaction is sealed and not acknowledged.
        served: a worker that is alive holds it.
    """

    paused_at: datetime | None
    in_flight: bool
    served: bool


async def known(conn: Connection) -> list[str]:
    """The appservices that have a lane."""
    return [row["appservice_id"] for row in await conn.fetch(KNOWN)]


async def look(conn: Connection, appservice_id: str) -> Standing | None:
    """How the lane stands, until the DB transaction ends; None if there is no such lane."""
    await conn.execute(LOCK, appservice_id)
    row = await conn.fetchrow(LOOK, appservice_id)
    return None if row is None else Standing(**row)


async def go_on(conn: Connection, appservice_id: str) -> None:
    """End the lane's rest, also a halt, and let the workers look at once."""
    await lanes.end_rest(conn, appservice_id)
    await notifications.notify(conn, notifications.OUTBOX)


async def ask_split(conn: Connection, appservice_id: str) -> None:
    """What is in flight may be replaced by parts, though some of it may be seen twice then."""
    await conn.execute(ASK_SPLIT, appservice_id)


async def ask_bury(conn: Connection, appservice_id: str, *, number: int) -> bool:
    """The transaction of this number is to be set aside; False: it was taken just now.

    The lane's row must be held; an ack has the transaction's row before that, and is not waited
    for.
    """
    return await conn.execute(ASK_BURY, appservice_id, number) == "UPDATE 1"


async def pause(conn: Connection, appservice_id: str) -> None:
    """Nothing more is sent until `resume`; what is being sent is."""
    await conn.execute(PAUSE, appservice_id)


async def resume(conn: Connection, appservice_id: str) -> None:
    """The lane goes on, if it is not held up by something else."""
    await conn.execute(RESUME, appservice_id)
