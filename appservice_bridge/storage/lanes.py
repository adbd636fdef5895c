"""The lane's own row: its holder's writes are fenced by the lease's token."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.leases import Lease, LeaseLostError

LOCK: Final = """
-- lanes.lock: alone, for what is asked after it has to see what its last holder was committing
select from lane where appservice_id = $1 and lease_token = $2 for update
"""

HOLD: Final = """
-- lanes.hold: of a row that is locked already
select epoch, next_number, sealed_to, acked_to, failed_attempts,
       (select position from outbox_head h where h.appservice_id = $1) as head,
       greatest(0, extract(epoch from due_at)::float8
                 - extract(epoch from clock_timestamp())::float8) as rest_seconds,
       (select max(body_bytes) from sealed s where s.appservice_id = $1) as in_flight_bytes,
       exists (select from device_list_update u
                where u.appservice_id = $1 and u.sealed_in is null)
       or exists (select from device_key_state k
                   where k.appservice_id = $1 and k.waiting) as device_updates,
       exists (select from deleted_device d where d.appservice_id = $1) as deleted_devices,
       case when body_cap_at > clock_timestamp() - interval '1 day' then body_cap_bytes end
           as body_cap_bytes,
       updates_cap, paused_at is not null as paused, split_asked_at is not null as split_asked,
       (select min(number) from sealed s
         where s.appservice_id = $1 and s.bury_asked_at is not null) as bury_asked
  from lane where appservice_id = $1 and lease_token = $2
"""

PLACES: Final = """
-- lanes.places: where items wait, and nothing is in flight nor has to be cut smaller
select l.appservice_id, l.epoch, l.next_number, l.sealed_to
  from lane l join outbox_head h using (appservice_id)
 where l.appservice_id = any($1::text[]) and h.position > l.sealed_to
   and l.body_cap_bytes is null
   and not exists (select from sealed s where s.appservice_id = l.appservice_id)
"""

SKIP: Final = """
-- lanes.skip
update lane set sealed_to = $3, acked_to = $3
 where appservice_id = $1 and lease_token = $2 and sealed_to = acked_to
"""

REST: Final = """
-- lanes.rest: no rest after an attempt during which a rest was ended; it took $6 seconds up to
-- the begin of this DB transaction, however long the row is waited for
update lane
   set due_at = case when woken_at between now() - make_interval(secs => $6)
                                       and clock_timestamp()
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

TAKE_NUMBER: Final = """
-- lanes.take_number
update lane set next_number = next_number + 1
 where appservice_id = $1 and lease_token = $2 and next_number = $3
"""

LOWER_BODY_CAP: Final = """
-- lanes.lower_body_cap
update lane set body_cap_bytes = $3, body_cap_at = clock_timestamp()
 where appservice_id = $1 and lease_token = $2
"""

SET_UPDATES_CAP: Final = """
-- lanes.set_updates_cap
update lane set updates_cap = $3 where appservice_id = $1 and lease_token = $2
"""

GO_ON: Final = """
-- lanes.go_on: at once, with what is in place of a transaction that was refused
update lane
   set acked_to = greatest(acked_to, $3), due_at = '-infinity', failed_attempts = 0,
       failing_since = null, split_asked_at = null
 where appservice_id = $1 and lease_token = $2
"""

FORGET_SPLIT: Final = """
-- lanes.forget_split
update lane set split_asked_at = null where appservice_id = $1 and lease_token = $2
"""


class Place(NamedTuple):
    """Where the next seal begins.

    Attributes:
        number: that its transaction takes.
        after: the position before its first item.
    """

    epoch: str
    number: int
    after: int

    @property
    def txn_id(self) -> str:
        """The id of its transaction."""
        return f"ab{self.epoch}-{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneState:
    """A lane's own row, locked until the DB transaction ends.

    Attributes:
        sealed_to: every position up to it is in a sealed transaction, or was.
        acked_to: every position up to it was delivered.
        failed_attempts: since the last ack.
        head: up to which position all that is said here is known.
        rest_seconds: how long the lane still rests; 0 when it is due.
        in_flight_bytes: of the body that is sealed and not acknowledged, of the largest if there
            are more; None: none is.
        device_updates: something waits to be told of devices.
        deleted_devices: of some devices nothing may be sealed that was routed before they went.
        body_cap_bytes: more in a body was too large lately.
        updates_cap: so many users and devices go in one transaction, without items; None: as
            many as fit, with items.
        paused: by an operator; nothing is to be sealed or sent.
        split_asked: by an operator, for what is in flight.
        bury_asked: number of the transaction in flight that an operator wants set aside.
    """

    epoch: str
    next_number: int
    sealed_to: int
    acked_to: int
    failed_attempts: int
    head: int
    rest_seconds: float
    in_flight_bytes: int | None
    device_updates: bool
    deleted_devices: bool
    body_cap_bytes: int | None
    updates_cap: int | None
    paused: bool
    split_asked: bool
    bury_asked: int | None

    @property
    def in_flight(self) -> bool:
        """Whether a transaction is sealed and not acknowledged."""
        return self.in_flight_bytes is not None

    @property
    def place(self) -> Place:
        """Where the next seal begins."""
        return Place(self.epoch, self.next_number, self.sealed_to)


async def places(conn: Connection, leases: Iterable[Lease]) -> Mapping[str, Place]:
    """Where the next seal of these lanes begins, by appservice; of those that can go on at once."""
    rows = await conn.fetch(PLACES, [lease.appservice_id for lease in leases])
    return {appservice_id: Place(*place) for appservice_id, *place in rows}


async def hold(conn: Connection, lease: Lease) -> LaneState:
    """Lock the lane's row.

    Raises:
        LeaseLostError: someone else holds the lane.
    """
    await conn.execute(LOCK, lease.appservice_id, lease.token)
    row = await conn.fetchrow(HOLD, lease.appservice_id, lease.token)
    if row is None:
        raise LeaseLostError(lease.appservice_id)
    return LaneState(**row)


async def skip(conn: Connection, lease: Lease, *, upto: int) -> None:
    """Step over positions that hold nothing to send; nothing may be in flight.

    Raises:
        LeaseLostError: someone else holds the lane.
    """
    await _write(conn, lease, SKIP, upto)


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

    First in a DB transaction: `attempt_seconds` passed before it began.

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


async def take_number(conn: Connection, lease: Lease, state: LaneState) -> str:
    """A transaction id that is given out from now on; the lane's row must be held.

    Raises:
        LeaseLostError: someone else holds the lane.
    """
    await _write(conn, lease, TAKE_NUMBER, state.next_number)
    return state.place.txn_id


async def lower_body_cap(conn: Connection, lease: Lease, *, max_bytes: int) -> None:
    """For a day nothing is sealed that is larger than this, unless a single item is.

    Raises:
        LeaseLostError: someone else holds the lane.
    """
    await _write(conn, lease, LOWER_BODY_CAP, max_bytes)


async def set_updates_cap(conn: Connection, lease: Lease, most: int | None) -> None:
    """Put so many users and devices into one transaction.

    Raises:
        LeaseLostError: someone else holds the lane.
    """
    await _write(conn, lease, SET_UPDATES_CAP, most)


async def go_on(conn: Connection, lease: Lease, *, acked_to: int) -> None:
    """What was refused is replaced: the lane is due, and owes nothing up to this position.

    Raises:
        LeaseLostError: someone else holds the lane.
    """
    await _write(conn, lease, GO_ON, acked_to)


async def forget_split(conn: Connection, lease: Lease) -> None:
    """What an operator asked for cannot be done: there is nothing to split.

    Raises:
        LeaseLostError: someone else holds the lane.
    """
    await _write(conn, lease, FORGET_SPLIT)


async def _write(conn: Connection, lease: Lease, statement: str, *values: int | None) -> None:
    if await conn.execute(statement, lease.appservice_id, lease.token, *values) != "UPDATE 1":
        raise LeaseLostError(lease.appservice_id)


async def end_rest(conn: Connection, appservice_id: str) -> bool:
    """End a lane's rest, whoever holds it; False if there is no such lane."""
    return await conn.execute(END_REST, appservice_id) == "UPDATE 1"
