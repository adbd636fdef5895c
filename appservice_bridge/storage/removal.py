"""Forgets an appservice that is registered no longer, in steps of bounded size."""

from dataclasses import dataclass
from typing import Final

from appservice_bridge.storage.database import Connection

KNOWN: Final = """
-- removal.known: the head goes last, so a removal that was cut short is found again
select array(select appservice_id from outbox_head order by appservice_id)
"""

LEFT: Final = """
-- removal.left
select (select h.position - coalesce(l.acked_to, h.position) from outbox_head h
          left join lane l using (appservice_id) where h.appservice_id = $1) as items,
       (select count(*) from capture_log where appservice_id = $1) as transactions,
       (select count(*) from device_list_update where appservice_id = $1)
     + (select count(*) from device_key_state
         where appservice_id = $1 and (waiting or sealed_in is not null)) as device_updates,
       (select count(*) from dead_letter where appservice_id = $1) as dead_letters
"""

IN_USE: Final = """
-- removal.in_use: a worker that is alive has its registration, or its lane
select exists (select from worker where alive_until > clock_timestamp()
                  and exists (select from appservice where appservice_id = $1))
    or exists (select from lane join worker using (worker_id)
                where appservice_id = $1 and alive_until > clock_timestamp())
"""

RETURNED: Final = """
-- removal.returned: its registration is announced, by whomever
select exists (select from appservice where appservice_id = $1)
"""

WITHDRAW: Final = """
-- removal.withdraw
delete from appservice where appservice_id = $1
"""

DISCARD: Final = """
-- removal.discard: nothing waits any more, and nobody purges what did as if it were delivered
update lane l
   set lease_token = l.lease_token + 1, worker_id = null,
       acked_to = h.position, sealed_to = h.position, purged_to = h.position,
       bytes_out = h.bytes_in
  from outbox_head h
 where l.appservice_id = $1 and h.appservice_id = $1
"""

FORGET_DISCARDED: Final = """
-- removal.forget_discarded: what came since, if it came back, lies above
delete from outbox
 where appservice_id = $1
   and position <= (select max(position) from (
       select o.position from outbox o join lane l using (appservice_id)
        where o.appservice_id = $1 and o.position <= l.purged_to
        order by o.position limit $2) o)
"""

FORGET_SEALED: Final = """
-- removal.forget_sealed
delete from sealed where appservice_id = $1
"""

FORGET_CAPTURED: Final = """
-- removal.forget_captured: intake takes the numbers for those of a writer that gave up
delete from capture_log where seq = any(array(
    select seq from capture_log where appservice_id = $1 limit $2))
"""

FORGET_OUTBOX: Final = """
-- removal.forget_outbox
delete from outbox
 where appservice_id = $1
   and position <= (select max(position) from (
       select position from outbox where appservice_id = $1 order by position limit $2) o)
"""

FORGET_LATE: Final = """
-- removal.forget_late: what a worker took that had not heard of it yet; a few, if any
delete from outbox where appservice_id = $1
"""

FORGET_DEAD_LETTERS: Final = """
-- removal.forget_dead_letters
delete from dead_letter where ctid = any(array(
    select ctid from dead_letter where appservice_id = $1 limit $2))
"""

FORGET_RELAYED: Final = """
-- removal.forget_relayed
delete from relayed where ctid = any(array(
    select ctid from relayed where appservice_id = $1 limit $2))
"""

FORGET_SEEN_EVENTS: Final = """
-- removal.forget_seen_events
delete from seen_event where ctid = any(array(
    select ctid from seen_event where appservice_id = $1 limit $2))
"""

FORGET_LISTS: Final = """
-- removal.forget_lists
delete from device_list_update where ctid = any(array(
    select ctid from device_list_update where appservice_id = $1 limit $2))
"""

FORGET_KEYS: Final = """
-- removal.forget_keys
delete from device_key_state where ctid = any(array(
    select ctid from device_key_state where appservice_id = $1 limit $2))
"""

FORGET_DELETED_DEVICES: Final = """
-- removal.forget_deleted_devices
delete from deleted_device where ctid = any(array(
    select ctid from deleted_device where appservice_id = $1 limit $2))
"""

FORGET_TRACKED: Final = """
-- removal.forget_tracked
delete from tracked where ctid = any(array(
    select ctid from tracked where appservice_id = $1 limit $2))
"""

FORGET_RESIDENTS: Final = """
-- removal.forget_residents
delete from resident where ctid = any(array(
    select ctid from resident where appservice_id = $1 limit $2))
"""

FORGET_DELIVERED: Final = """
-- removal.forget_delivered: the rows of the homeserver's inbox stay where they are
delete from inbox_delivered where ctid = any(array(
    select ctid from inbox_delivered where appservice_id = $1 limit $2))
"""

FORGET_KEPT: Final = """
-- removal.forget_kept
delete from kept where ctid = any(array(
    select ctid from kept where appservice_id = $1 limit $2))
"""

FORGET_TOKENS: Final = """
-- removal.forget_tokens
delete from appservice_token where appservice_id = $1
"""

FORGET_CURSOR: Final = """
-- removal.forget_cursor
delete from event_cursor where appservice_id = $1
"""

FORGET_LEDGER: Final = """
-- removal.forget_ledger: whoever compares both sides finds neither
delete from ledger where appservice_id = $1
"""

KEEP_NUMBER: Final = """
-- removal.keep_number
update attached a set next_number = l.next_number
  from lane l
 where a.appservice_id = $1 and l.appservice_id = $1
"""

FORGET_LANE: Final = """
-- removal.forget_lane
delete from lane where appservice_id = $1
"""

FORGET_HEAD: Final = """
-- removal.forget_head
delete from outbox_head where appservice_id = $1
"""

_IN_BATCHES: Final = (
    FORGET_CAPTURED,
    FORGET_DEAD_LETTERS,
    FORGET_OUTBOX,
    FORGET_RELAYED,
    FORGET_SEEN_EVENTS,
    FORGET_LISTS,
    FORGET_KEYS,
    FORGET_DELETED_DEVICES,
    FORGET_TRACKED,
    FORGET_RESIDENTS,
    FORGET_DELIVERED,
    FORGET_KEPT,
)
_AT_LAST: Final = (
    FORGET_TOKENS,
    FORGET_CURSOR,
    FORGET_LEDGER,
    KEEP_NUMBER,
    FORGET_LATE,
    FORGET_LANE,
    FORGET_HEAD,
)
STEPS: Final = len(_IN_BATCHES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What would be lost with an appservice.

    Attributes:
        items: in its outbox, not acknowledged.
        transactions: of the homeserver, and single facts for it, stored and not routed yet.
        device_updates: users and devices that it has to hear of.
    """

    items: int
    transactions: int
    device_updates: int
    dead_letters: int

    @property
    def nothing(self) -> bool:
        """Whether it has had everything."""
        return not (self.items or self.transactions or self.device_updates or self.dead_letters)


async def known(conn: Connection) -> list[str]:
    """Every appservice of which anything is kept, ascending."""
    found: list[str] = await conn.fetchval(KNOWN)
    return found


async def left(conn: Connection, appservice_id: str) -> Left:
    """What waits for it, or lies there for an operator."""
    (row,) = await conn.fetch(LEFT, appservice_id)
    return Left(**{name: value or 0 for name, value in row.items()})


async def in_use(conn: Connection, appservice_id: str) -> bool:
    """Whether a worker that is alive may still route to it, or send."""
    return bool(await conn.fetchval(IN_USE, appservice_id))


async def returned(conn: Connection, appservice_id: str) -> bool:
    """Whether its registration came back since `discard`; only who holds the gate knows."""
    return bool(await conn.fetchval(RETURNED, appservice_id))


async def discard(conn: Connection, appservice_id: str) -> None:
    """Let nothing wait for it any more; what that was goes with `forget_discarded`.

    Only who holds the gate may. If its registration comes back before all is forgotten, its lane
    goes on behind what was discarded, and its counts begin anew.
    """
    for statement in (WITHDRAW, DISCARD, FORGET_SEALED, FORGET_LEDGER):
        await conn.execute(statement, appservice_id)


async def forget_discarded(conn: Connection, appservice_id: str, *, size: int) -> int:
    """So many items at most of those that were discarded, or delivered; returns how many."""
    done = await conn.execute(FORGET_DISCARDED, appservice_id, size)
    return int(done.split()[1])


async def forget_batch(conn: Connection, step: int, appservice_id: str, *, size: int) -> int:
    """So many rows at most of one of the `STEPS` tables that may be large; returns how many.

    Only who holds the gate may, and while its registration has not come back.
    """
    done = await conn.execute(_IN_BATCHES[step], appservice_id, size)
    return int(done.split()[1])


async def forget_rest(conn: Connection, appservice_id: str) -> None:
    """What is one row, or a few; only who holds the gate may.

    One row is kept, for the case that it ever comes back: since when the homeserver's inbox is
    captured for it, so that what was delivered or discarded is not taken for older than the
    bridge; and the next transaction's number, so that no id is given out twice.
    """
    for statement in _AT_LAST:
        await conn.execute(statement, appservice_id)
