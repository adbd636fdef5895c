"""The lane's own row: its holder's writes are fenced by the lease's token."""

from dataclasses import dataclass
from typing import Final

from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.leases import Lease, LeaseLostError

HOLD: Final = """
-- lanes.hold
select epoch, next_number, sealed_to, acked_to, failed_attempts,
       greatest(0, extract(epoch from due_at)::float8
                 - extract(epoch from clock_timestamp())::float8) as rest_seconds,
       exists (select from sealed s where s.appservice_id = $1) as in_flight,
       exists (select from device_list_update u
                where u.appservice_id = $1 and u.sealed_in is null)
       or exists (select from device_key_state k
                   where k.appservice_id = $1 and k.waiting) as device_updates,
       exists (select from deleted_device d where d.appservice_id = $1) as deleted_devices
  from lane where appservice_id = $1 and lease_token = $2 for update
"""

SKIP: Final = """
-- lanes.skip
update lane set sealed_to = $3, acked_to = $3
 where appservice_id = $1 and lease_token = $2 and sealed_to = acked_to
"""

REST: Final = """
-- lanes.rest: no rest after an attempt ($6 seconds) during which a rest was ended
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
-- lanes.halt: until an operator looks
update lane set due_at = 'infinity', last_outcome = $3
 where appservice_id = $1 and lease_token = $2
"""

END_REST: Final = """
-- lanes.end_rest
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
        in_flight: a transaction is sealed and not acknowledged.
        device_updates: something waits to be told of devices.
        deleted_devices: of some devices nothing may be sealed that was routed before they went.
    """

    epoch: str
    next_number: int
    sealed_to: int
    acked_to: int
    failed_attempts: int
    rest_seconds: float
    in_flight: bool
    device_updates: bool
    deleted_devices: bool


async def hold(conn: Connection, lease: Lease) -> LaneState:
    """Lock the lane's row.

    Raises:
        LeaseLostError: someone else holds the lane.
    """
    row = await conn.fetchrow(HOLD, lease.appservice_id, lease.token)
    if row is None:
        raise LeaseLostError(lease.appservice_id)
    return LaneState(**row)


async def skip(conn: Connection, lease: Lease, *, upto: int) -> None:
    """Step over positions that hold nothing to send; nothing may be in flight.

    Raises:
        LeaseLostError: someone else holds the lane.
    """
    if await conn.execute(SKIP, lease.appservice_id, lease.token, upto) != "UPDATE 1":
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
    """Stop a lane whose seal does not hold; only `end_rest` makes it try again.

    Raises:
        LeaseLostError: someone else holds the lane.
    """
    if await conn.execute(HALT, lease.appservice_id, lease.token, outcome) != "UPDATE 1":
        raise LeaseLostError(lease.appservice_id)


async def end_rest(conn: Connection, appservice_id: str) -> bool:
    """End a lane's rest, whoever holds it; False if there is no such lane."""
    return await conn.execute(END_REST, appservice_id) == "UPDATE 1"
