"""What went into the outboxes compared with what came out and waits; and rows that nobody took.

For each appservice, and each kind of item (event, ephemeral, to_device), at any moment:

    routed + redriven + replayed
        = delivered + buried + dropped + expired + removed + waiting

The words left of `waiting` are counts of the ledger, each added in the DB transaction that did it.
`waiting` is counted in the outbox: every row above what was acknowledged, sealed or not, but those
that were emptied, which `dropped`, `expired` or `buried` has counted. A message that came in one
batch with the end of its device is both `routed` and `dropped`, and never has a row.

No part of it are `refused`, `repeated`, `foreign` and the others of the way in, which never had a
place in an outbox; nor `discarded` and `cleaned`, which happen behind it. `buried` is only what was
routed before. The difference is what went in and neither came out nor waits; below zero it is what
came out and never went in.

Positions are dense, so that each from the last acknowledged one to the head is one row: a second
look at the same, without the ledger.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from appservice_bridge.domain.ledger_outcomes import INTO_OUTBOX, OUT_OF_OUTBOX, LedgerOutcome
from appservice_bridge.domain.transaction import Kind
from appservice_bridge.storage import inbox
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.repeats import InboxKey

PAGE: Final = 100_000

COUNTED: Final = """
-- audit.counted
select appservice_id, kind, outcome, items from ledger
 where kind = any($1::text[]) and outcome = any($2::text[])
"""

LANES: Final = """
-- audit.lanes
select appservice_id, h.position as head, l.acked_to
  from outbox_head h join lane l using (appservice_id) order by appservice_id
"""

WAITING: Final = """
-- audit.waiting: of the next $3 rows so many of each kind, and where those end
select kind, count(*) as items, max(position) as upto
  from (select kind, position from outbox where appservice_id = $1 and position > $2
         order by position limit $3) page
 group by kind
"""

FLOOR: Final = """
-- audit.floor
select settled from stream_floor where stream = 'to_device'
"""

UNTAKEN: Final = """
-- audit.untaken: rows of users above their bounds, of devices that exist, that nobody took
select i.user_id, i.device_id, i.stream_id
  from public.device_inbox i
  join unnest($3::text[], $4::bigint[]) as u(user_id, bound) on u.user_id = i.user_id
 where i.stream_id > $1 and i.stream_id <= $2 and i.stream_id > u.bound
   and (select true from public.devices v
         where v.user_id = i.user_id and v.device_id = i.device_id
           and not v.hidden limit 1) is not null
   and (select true from taken t
         where t.user_id = i.user_id and t.device_id = i.device_id
           and t.stream_id = i.stream_id) is null
   and not exists (select from capture_log c
                    where c.kind = 'to_device' and c.user_id = i.user_id
                      and c.device_id = i.device_id and c.stream_id = i.stream_id)
"""

COMPARED: Final = """
-- audit.compared: between which positions each appservice's room events were compared
select appservice_id, coalesce(began, settled) as began, settled from event_cursor
"""

RECEIVED: Final = """
-- audit.received: when the first event from a position on came to the homeserver; null: no such
select coalesce(received_ts, 0) from public.events
 where stream_ordering >= $1 order by stream_ordering limit 1
"""

ACCOUNTED_FOR: Final = """
-- audit.accounted_for: those of these events that are dead letters, by name or as they came
select w.event_id from unnest($2::text[]) as w(event_id)
 where exists (select from dead_letter d
                where d.appservice_id = $1 and d.kind in ('event', 'transaction')
                  and (position(w.event_id in d.reason) > 0
                       or position(convert_to(w.event_id, 'UTF8') in d.payload) > 0))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """One appservice's items of one kind.

    Attributes:
        counts: of the ledger; what is not there is 0.
        waiting: counted in the outbox.
    """

    appservice_id: str
    kind: str
    counts: Mapping[LedgerOutcome, int]
    waiting: int

    @property
    def difference(self) -> int:
        """What went in and is nowhere; below zero: what is there and never went in."""
        went_in = sum(self.counts.get(each, 0) for each in INTO_OUTBOX)
        came_out = sum(self.counts.get(each, 0) for each in OUT_OF_OUTBOX)
        return went_in - came_out - self.waiting


@dataclass(slots=True, kw_only=True)
class Waiting:
    """What waits in one outbox.

    Attributes:
        kinds: rows by kind, with those that were emptied.
        lacking: positions above the last acknowledged one that hold no row.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    lacking: int = 0


@asynccontextmanager
async def snapshot(conn: Connection) -> AsyncIterator[None]:
    """All that is read inside is of one moment, whatever workers do meanwhile."""
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        yield


async def balances(conn: Connection, tell: Callable[[str], object]) -> tuple[list[Balance], int]:
    """Every balance, and how many positions lack their row; only in a snapshot.

    `tell` hears how far it is, for millions of rows take a while.
    """
    counts: dict[tuple[str, str], dict[LedgerOutcome, int]] = {}
    kinds = [kind for kind in Kind if kind is not Kind.DROPPED]
    for id_, kind, outcome, items in await conn.fetch(
        COUNTED, kinds, sorted(INTO_OUTBOX | OUT_OF_OUTBOX)
    ):
        counts.setdefault((id_, kind), {})[LedgerOutcome(outcome)] = items
    waiting: Counter[tuple[str, str]] = Counter()
    lacking = 0
    for id_, head, acked_to in await conn.fetch(LANES):
        found = await _waiting(conn, id_, head=head, acked_to=acked_to, tell=tell)
        lacking += found.lacking
        waiting.update({(id_, kind): items for kind, items in found.kinds.items()})
    of = sorted(counts.keys() | {key for key in waiting if key[1] != Kind.DROPPED})
    return [
        Balance(
            appservice_id=id_,
            kind=kind,
            counts=counts.get((id_, kind), {}),
            waiting=waiting[id_, kind],
        )
        for id_, kind in of
    ], lacking


async def _waiting(
    conn: Connection, appservice_id: str, *, head: int, acked_to: int, tell: Callable[[str], object]
) -> Waiting:
    found, upto = Waiting(), acked_to
    while rows := await conn.fetch(WAITING, appservice_id, upto, PAGE):
        found.kinds.update({row["kind"]: row["items"] for row in rows})
        upto = max(row["upto"] for row in rows)
        if found.kinds.total() % PAGE:
            break  # a page that is not full is the last
        tell(f"{found.kinds.total():,} of {head - acked_to:,} waiting items of {appservice_id}")
    found.lacking = head - acked_to - found.kinds.total()
    return found


async def floor(conn: Connection) -> int | None:
    """Up to where the inbox was compared and is not remembered; None: nobody compares it."""
    settled: int | None = await conn.fetchval(FLOOR)
    return settled


async def untaken(
    conn: Connection, *, after: int, upto: int, bounds: Mapping[str, int]
) -> list[InboxKey]:
    """Rows of a stretch of the inbox that wait nowhere and were never routed.

    For each user in `bounds` only above the position given there; only above the floor.
    """
    await conn.execute(inbox.COMPARE_AS_SETS)
    rows = await conn.fetch(UNTAKEN, after, upto, list(bounds), list(bounds.values()))
    return [InboxKey(*row) for row in rows]


async def compared(conn: Connection) -> dict[str, tuple[int, int]]:
    """From where, and up to where, each appservice's room events were compared with what came."""
    rows = await conn.fetch(COMPARED)
    return {id_: (began, settled) for id_, began, settled in rows}


async def first_received_since(conn: Connection, *, since_ms: int, low: int, high: int) -> int:
    """From which position between two, roughly, events came to the homeserver since a time."""
    while low < high:
        middle = (low + high) // 2
        received = await conn.fetchval(RECEIVED, middle)
        if received is not None and received < since_ms:
            low = middle + 1
        else:
            high = middle
    return low


async def accounted_for(
    conn: Connection, appservice_id: str, event_ids: Sequence[str]
) -> frozenset[str]:
    """Those of these events that an operator sees among the dead letters."""
    rows = await conn.fetch(ACCOUNTED_FOR, appservice_id, event_ids)
    return frozenset(row["event_id"] for row in rows)
