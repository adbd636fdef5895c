"""What intake reads and writes, all of it in one DB transaction that holds the gate row."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from appservice_bridge.storage.database import Connection

HOLD_GATE: Final = """
-- intake.hold_gate: skip locked is for the gate alone; where order matters nothing is skipped
select head from intake_gate where registrations_digest = $1 for update skip locked
"""

SAME_REGISTRATIONS: Final = """
-- intake.same_registrations
select registrations_digest is not distinct from $1 from intake_gate
"""

GAPS: Final = """
-- intake.gaps: after ten minutes a gap is left to the sweep
select first_seq, last_seq,
       settled_by < pg_snapshot_xmin(pg_current_snapshot())
       or seen_at < clock_timestamp() - interval '10 minutes' as settled
  from intake_gap order by first_seq
"""

READ_LOG: Final = """
-- intake.read_log: in sequence order, as many as fit in $4 rows and $5 bytes, one at least
select seq, kind, appservice_id, user_id, device_id, stream_id, body, captured_at
  from (select l.*, sum(octet_length(body)) over (order by seq) - octet_length(body) as bytes_before
          from ((select * from capture_log where seq > $1 order by seq limit $4)
                union all
                (select c.* from unnest($2::bigint[], $3::bigint[]) as g(first_seq, last_seq)
                  cross join lateral (select * from capture_log
                                       where seq between g.first_seq and g.last_seq
                                       order by seq limit $4) c)
                order by seq limit $4) l) r
 where bytes_before < $5
 order by seq
"""

TAKE: Final = """
-- intake.take: the rows of the homeserver's inbox that nobody took before
insert into taken (user_id, device_id, stream_id)
select * from unnest($1::text[], $2::text[], $3::bigint[])
on conflict do nothing
returning user_id, device_id, stream_id
"""

FIRST_SEEN: Final = """
-- intake.first_seen: the room events that were not routed to their appservice before
insert into seen_event (appservice_id, event_digest)
select * from unnest($1::text[], $2::bytea[])
on conflict do nothing
returning appservice_id, event_digest
"""

ADD_FOREIGN: Final = """
-- intake.add_foreign
insert into foreign_user (user_id) select * from unnest($1::text[]) on conflict do nothing
"""

APPEND: Final = """
-- intake.append: the next positions of each appservice, in the order given
with item as (
    select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[],
                         $6::timestamptz[], $7::bytea[]) with ordinality
        as i(appservice_id, kind, user_id, device_id, stream_id, captured_at, payload, place)
), head as (
    update outbox_head h set position = h.position + n.items
      from (select appservice_id, count(*) as items from item group by appservice_id) n
     where h.appservice_id = n.appservice_id
    returning h.appservice_id, h.position - n.items as before
)
insert into outbox (appservice_id, position, kind, user_id, device_id, stream_id, captured_at,
                    payload)
select i.appservice_id,
       head.before + row_number() over (partition by i.appservice_id order by i.place),
       i.kind, i.user_id, i.device_id, i.stream_id, i.captured_at, i.payload
  from item i join head using (appservice_id)
"""

COUNT: Final = """
-- intake.count
insert into ledger (appservice_id, kind, outcome, items)
select * from unnest($1::text[], $2::text[], $3::text[], $4::bigint[])
on conflict (appservice_id, kind, outcome) do update set items = ledger.items + excluded.items
"""

BURY: Final = """
-- intake.bury
insert into dead_letter (appservice_id, kind, reason, user_id, device_id, stream_id, payload)
select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[],
                     $7::bytea[])
"""

CONSUME: Final = """
-- intake.consume: returns how many were there to consume
with gone as (delete from capture_log where seq = any($1::bigint[]) returning seq),
     moved as (update intake_gate
                  set head = greatest(head, $2), last_intake_at = clock_timestamp())
select count(*) from gone
"""

BURY_ROWS: Final = """
-- intake.bury_rows
insert into dead_letter (appservice_id, kind, reason, user_id, device_id, stream_id, payload)
select coalesce(appservice_id, ''), kind, $2, user_id, device_id, stream_id, body
  from capture_log where seq = any($1::bigint[])
"""

FORGET_GAPS: Final = """
-- intake.forget_gaps
delete from intake_gap where first_seq = any($1::bigint[])
"""

ADD_GAPS: Final = """
-- intake.add_gaps
insert into intake_gap (first_seq, last_seq, settled_by)
select first_seq, last_seq, pg_current_xact_id()
  from unnest($1::bigint[], $2::bigint[]) as g(first_seq, last_seq)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Numbers of the log that were drawn but not there to read; both ends belong to it."""

    first_seq: int
    last_seq: int
    settled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Where the log was left: all up to `head` is consumed, but for what lies in `gaps`."""

    head: int
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """One row of the capture log.

    Attributes:
        kind: to_device (`body` is Synapse's message_json) or transaction (`body` is a request's).
        stream_id: with user and device the key of a row in the homeserver's inbox.
    """

    seq: int
    kind: str
    appservice_id: str | None
    user_id: str | None
    device_id: str | None
    stream_id: int | None
    body: bytes = field(repr=False)
    captured_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one pass of intake takes from the log.

    Attributes:
        whole: nothing that was there to read is left behind.
    """

    gate: Gate
    rows: tuple[Captured, ...]
    whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """One item on its way into the outbox of one appservice."""

    appservice_id: str
    kind: str
    captured_at: datetime
    payload: bytes = field(repr=False)
    user_id: str | None = None
    device_id: str | None = None
    stream_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Buried:
    """One item that can never be delivered, set aside for an operator."""

    appservice_id: str
    kind: str
    reason: str
    payload: bytes | None = field(repr=False)
    user_id: str | None = None
    device_id: str | None = None
    stream_id: int | None = None


async def hold_gate(conn: Connection, registrations_digest: bytes) -> Gate | None:
    """Become the one intake until the DB transaction ends; None if another is.

    The gaps are read after the gate is held and before the log is: a gap found settled here is
    read once more before it is forgotten, so that a writer who ended in between is not missed.
    """
    head = await conn.fetchval(HOLD_GATE, registrations_digest)
    if head is None:
        return None
    return Gate(head=head, gaps=tuple(Gap(**row) for row in await conn.fetch(GAPS)))


async def same_registrations(conn: Connection, registrations_digest: bytes) -> bool:
    """Whether the worker that started last has these registrations, too."""
    return bool(await conn.fetchval(SAME_REGISTRATIONS, registrations_digest))


async def read_log(
    conn: Connection, gate: Gate, *, max_rows: int, max_bytes: int, sweep: bool = False
) -> Batch:
    """The next rows in sequence order; a sweep looks below the head, too, whatever the gaps say."""
    after = 0 if sweep else gate.head
    firsts = [] if sweep else [gap.first_seq for gap in gate.gaps]
    lasts = [] if sweep else [gap.last_seq for gap in gate.gaps]
    records = await conn.fetch(READ_LOG, after, firsts, lasts, max_rows, max_bytes)
    rows = tuple(Captured(**record) for record in records)
    size = sum(len(row.body) for row in rows)
    return Batch(gate=gate, rows=rows, whole=len(rows) < max_rows and size < max_bytes)


async def take(conn: Connection, keys: Sequence[tuple[str, str, int]]) -> set[tuple[str, str, int]]:
    """Claim rows of the inbox by (user, device, stream id); returns those nobody had."""
    columns = [list(column) for column in zip(*keys, strict=True)] or [[], [], []]
    return {tuple(row) for row in await conn.fetch(TAKE, *columns)}


async def first_seen(conn: Connection, keys: Sequence[tuple[str, bytes]]) -> set[tuple[str, bytes]]:
    """Record room events by (appservice, SHA-256 of event id); returns those not seen before."""
    columns = [list(column) for column in zip(*keys, strict=True)] or [[], []]
    return {tuple(row) for row in await conn.fetch(FIRST_SEEN, *columns)}


async def add_foreign(conn: Connection, user_ids: Iterable[str]) -> None:
    """Local users that no registration owns: from now on the triggers leave them out."""
    await conn.execute(ADD_FOREIGN, sorted(set(user_ids)))


async def append(conn: Connection, items: Sequence[Routed]) -> None:
    """Give every item the next position of its appservice, in the order given.

    Raises:
        LookupError: an appservice was routed to that has no outbox.
    """
    done = await conn.execute(
        APPEND,
        [item.appservice_id for item in items],
        [item.kind for item in items],
        [item.user_id for item in items],
        [item.device_id for item in items],
        [item.stream_id for item in items],
        [item.captured_at for item in items],
        [item.payload for item in items],
    )
    if done != f"INSERT 0 {len(items)}":
        raise LookupError("an appservice without an outbox was routed to")


async def bury(conn: Connection, items: Sequence[Buried]) -> None:
    """Set items aside as dead letters."""
    await conn.execute(
        BURY,
        [item.appservice_id for item in items],
        [item.kind for item in items],
        [item.reason for item in items],
        [item.user_id for item in items],
        [item.device_id for item in items],
        [item.stream_id for item in items],
        [item.payload for item in items],
    )


async def bury_rows(conn: Connection, batch: Batch, *, reason: str) -> None:
    """Set rows of the log aside as they are, and consume them."""
    done = await conn.execute(BURY_ROWS, [row.seq for row in batch.rows], reason)
    if done != f"INSERT 0 {len(batch.rows)}":
        raise LookupError("the capture log has another consumer")
    await count(conn, Counter((row.appservice_id or "", row.kind, "buried") for row in batch.rows))
    await consume(conn, batch)


async def count(conn: Connection, counts: Mapping[tuple[str, str, str], int]) -> None:
    """Add to the ledger, by (appservice or '', kind, outcome); in one order, so that none wait."""
    keys = sorted(counts)
    await conn.execute(
        COUNT,
        [key[0] for key in keys],
        [key[1] for key in keys],
        [key[2] for key in keys],
        [counts[key] for key in keys],
    )


async def consume(conn: Connection, batch: Batch) -> None:
    """Delete what was read, remember the numbers in between, and move the head.

    Raises:
        LookupError: a row was gone: someone else consumes the log.
    """
    head, seqs = batch.gate.head, [row.seq for row in batch.rows]
    if await conn.fetchval(CONSUME, seqs, max(seqs, default=head)) != len(seqs):
        raise LookupError("the capture log has another consumer")
    settled = [gap.first_seq for gap in batch.gate.gaps if gap.settled]
    if settled and batch.whole:
        await conn.execute(FORGET_GAPS, settled)
    if fresh := missing_numbers(head, [seq for seq in seqs if seq > head]):
        await conn.execute(ADD_GAPS, [gap[0] for gap in fresh], [gap[1] for gap in fresh])


def missing_numbers(head: int, seqs: Sequence[int]) -> list[tuple[int, int]]:
    """The ranges above `head` that ascending `seqs` leave out, up to the last of them."""
    ranges = []
    for seq in seqs:
        if seq > head + 1:
            ranges.append((head + 1, seq - 1))
        head = seq
    return ranges
