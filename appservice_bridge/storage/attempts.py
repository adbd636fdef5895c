"""What is known of the attempts to deliver a sealed transaction."""

from dataclasses import replace
from typing import Final

from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.leases import Lease, LeaseLostError
from appservice_bridge.storage.sealed import Sealed

OPEN: Final = """
-- attempts.open: only for who holds the lane
update sealed s set attempt_open = true
  from lane l
 where s.appservice_id = $1 and s.number = $3 and l.appservice_id = $1 and l.lease_token = $2
"""

DOUBT: Final = """
-- attempts.doubt: only for who holds the lane
update sealed s set doubtful = true, attempt_open = false
  from lane l
 where s.appservice_id = $1 and s.number = $3 and l.appservice_id = $1 and l.lease_token = $2
"""

CLOSE: Final = """
-- attempts.close: only for who holds the lane; $5: the outcome counts against the transaction
update sealed s
   set attempt_open = false, doubtful = s.doubtful or $4, refusals = s.refusals + $5::boolean::int,
       refused_since = case when $5 then coalesce(s.refused_since, clock_timestamp())
                            else s.refused_since end
  from lane l
 where s.appservice_id = $1 and s.number = $3 and l.appservice_id = $1 and l.lease_token = $2
returning s.doubtful, s.refusals, s.refused_since,
          coalesce(extract(epoch from clock_timestamp() - s.refused_since), 0)::float8
              as refused_seconds
"""


async def open_(conn: Connection, lease: Lease, sealed: Sealed) -> Sealed:
    """From this commit on, until its outcome is written, an attempt may be under way.

    Raises:
        LeaseLostError: someone else holds the lane.
    """
    if await conn.execute(OPEN, lease.appservice_id, lease.token, sealed.number) != "UPDATE 1":
        raise LeaseLostError(lease.appservice_id)
    return replace(sealed, attempt_open=True)


async def doubt(conn: Connection, lease: Lease, sealed: Sealed) -> Sealed:
    """An attempt was found open: nobody knows what came of it. Another begins with `open_`.

    Raises:
        LeaseLostError: someone else holds the lane.
    """
    if await conn.execute(DOUBT, lease.appservice_id, lease.token, sealed.number) != "UPDATE 1":
        raise LeaseLostError(lease.appservice_id)
    return replace(sealed, attempt_open=False, doubtful=True)


async def close(
    conn: Connection, lease: Lease, sealed: Sealed, *, doubtful: bool, counted: bool
) -> tuple[Sealed, float]:
    """An attempt failed; returns what is known now, and the seconds since the first that counted.

    Raises:
        LeaseLostError: someone else holds the lane.
    """
    row = await conn.fetchrow(
        CLOSE, lease.appservice_id, lease.token, sealed.number, doubtful, counted
    )
    if row is None:
        raise LeaseLostError(lease.appservice_id)
    known = replace(
        sealed,
        attempt_open=False,
        doubtful=row["doubtful"],
        refusals=row["refusals"],
        refused_since=row["refused_since"],
    )
    return known, row["refused_seconds"]
