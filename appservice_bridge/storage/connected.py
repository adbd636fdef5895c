"""Lanes of appservices that come to us: taken by the worker they came to, whoever had them."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.leases import Lease

TAKE: Final = """
-- connected.take: who held it is fenced off from now on; no rest goes on
update lane
   set worker_id = $2, lease_token = lease_token + 1, due_at = '-infinity',
       woken_at = clock_timestamp(),
       last_attempt_at = case when $3 then clock_timestamp() else last_attempt_at end
 where appservice_id = $1
returning lease_token
"""

GIVE_BACK: Final = """
-- connected.give_back: no lane that was taken again since
update lane set worker_id = null where appservice_id = $1 and lease_token = $2
"""

STILL_HELD: Final = """
-- connected.still_held
select appservice_id, lease_token
  from lane join unnest($1::text[], $2::bigint[]) as held(appservice_id, lease_token)
      using (appservice_id, lease_token)
"""

AS_HELD: Final = """
-- connected.as_held
select lease_token from lane where appservice_id = $1 for update
"""


async def take(
    conn: Connection, worker_id: UUID, appservice_id: str, *, asked: bool = False
) -> Lease | None:
    """Take a lane, wherever it is held, and end its rest; None if there is no such lane.

    `asked`: the appservice asked for a transaction, which counts as an attempt.
    """
    token = await conn.fetchval(TAKE, appservice_id, worker_id, asked)
    return None if token is None else Lease(appservice_id=appservice_id, token=token)


async def give_back(conn: Connection, lease: Lease) -> None:
    """Nobody holds the lane any more; nothing happens if it was taken over."""
    await conn.execute(GIVE_BACK, lease.appservice_id, lease.token)


async def still_held(conn: Connection, leases: Sequence[Lease]) -> set[Lease]:
    """Those of the leases that nobody took over."""
    ids, tokens = [one.appservice_id for one in leases], [one.token for one in leases]
    rows = await conn.fetch(STILL_HELD, ids, tokens)
    return {Lease(appservice_id=row["appservice_id"], token=row["lease_token"]) for row in rows}


async def as_held(conn: Connection, appservice_id: str) -> Lease | None:
    """The lease on a lane, whose row is locked until the DB transaction ends; it stays as it is.

    For writes that need no holder, as they are over when the lock is. None if there is no such
    lane.
    """
    token = await conn.fetchval(AS_HELD, appservice_id)
    return None if token is None else Lease(appservice_id=appservice_id, token=token)
