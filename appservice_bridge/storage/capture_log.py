"""The one log that everything comes in through: appended to by many, consumed by intake alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from operator import itemgetter
from typing import Final, NamedTuple

from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.storage import notifications
from appservice_bridge.storage.database import Connection

# The digest is written first: it gives the DB transaction its id before the log's number is
# drawn, which is what a gap in the log is settled by.
APPEND_TRANSACTION: Final = """
-- capture_log.append_transaction
with fresh as (
    insert into relayed (appservice_id, digest) values ($1, $2)
    on conflict do nothing
    returning appservice_id
)
insert into capture_log (kind, appservice_id, device_id, body)
select 'transaction', appservice_id, $4, $3 from fresh
"""

SAME_REGISTRATIONS: Final = """
-- capture_log.same_registrations
select registrations_digest is not distinct from $1 from intake_gate
"""

DATE_GAPS: Final = """
-- capture_log.date_gaps: this DB transaction is younger than every writer of what is not dated yet,
-- for it began behind the pass that found the gap
update intake_gap set settled_by = pg_current_xact_id() where settled_by is null
"""

HOLD_GATE: Final = """
-- capture_log.hold_gate: skip locked is for the gate alone; where order matters nothing is skipped.
-- Nobody waits for this commit to be durable: the log was before it, the seal that follows will be,
-- and both or neither outlive a crash of Postgres.
select set_config('synchronous_commit', 'off', true)
  from intake_gate where registrations_digest = $1 for update skip locked
"""

READ: Final = """
-- capture_log.read: the next rows, as many as fit in $2 rows and $3 bytes, one at least, in no
-- order; with $4 from below the head, too, whatever the gaps say. All is seen by one snapshot. No
-- row: the worker that started last has other registrations. The gaps and the last intake stand in
-- the first row, by its number: a time is slow to read. After ten minutes a gap is left to the
-- sweep. What is being consumed meanwhile is not read again: $5 is where that leaves the head, $6
-- and $7 are the gaps that it leaves, and $8 what it takes out of old ones; it may be consumed by
-- now, and the gaps be noted. How far it reaches is found out first, in narrow rows: bodies are not
-- carried through sorts and sums.
with gate as materialized (
    select coalesce($5, head) as head, last_intake_at
      from intake_gate where registrations_digest = $1 limit 1
), gap as materialized (
    select first_seq, last_seq, settled_by is null as undated,
           coalesce(settled_by < pg_snapshot_xmin(pg_current_snapshot()), false)
           or seen_at < clock_timestamp() - interval '10 minutes' as settled
      from intake_gap
    union all
    select first_seq, last_seq, true, false
      from unnest($6::bigint[], $7::bigint[]) as new(first_seq, last_seq)
     where not exists (select from intake_gap g where g.first_seq = new.first_seq)
), waiting as (
    (select l.* from gate cross join lateral (
        select seq, octet_length(body) as bytes from capture_log
         where seq > case when $4 then 0 else gate.head end
         order by seq limit $2) l)
    union all
    (select l.* from gap cross join lateral (
        select seq, octet_length(body) as bytes from capture_log
         where seq between gap.first_seq and gap.last_seq order by seq limit $2) l
      where not $4 and l.seq <> all($8::bigint[]))
     order by seq limit $2
), measured as (
    select seq, sum(bytes) over (order by seq rows unbounded preceding) - bytes as bytes_before
      from waiting
), reach as materialized (
    select min(seq) as first, max(seq) as last from measured where bytes_before < $3
)
select gate.head, (select last_value from capture_seq) as drawn,
       case when l.seq is not distinct from reach.first then gate.last_intake_at
           end as last_intake_at,
       case when l.seq is not distinct from reach.first then
           (select array_agg((first_seq, last_seq, undated, settled) order by first_seq) from gap)
           end as gaps,
       l.seq, l.kind, l.appservice_id, l.user_id, l.device_id, l.stream_id, l.body,
       date_part('epoch', l.captured_at) as captured_at
  from gate cross join reach left join lateral (
       select * from capture_log
        where seq > case when $4 then 0 else gate.head end and seq <= reach.last
       union all
       select c.* from gap join capture_log c on c.seq between gap.first_seq and gap.last_seq
        where not $4 and c.seq <> all($8::bigint[]) and c.seq <= reach.last
  ) l on true
"""

CONSUME: Final = """
-- capture_log.consume: returns how many were there to consume
with gone as (delete from capture_log where seq = any($1::bigint[]) returning seq),
     moved as (update intake_gate
                  set head = greatest(head, $2), last_intake_at = clock_timestamp())
select count(*) from gone
"""

FORGET_GAPS: Final = """
-- capture_log.forget_gaps
delete from intake_gap where first_seq = any($1::bigint[])
"""

ADD_GAPS: Final = """
-- capture_log.add_gaps
insert into intake_gap (first_seq, last_seq)
select first_seq, last_seq
  from unnest($1::bigint[], $2::bigint[]) as g(first_seq, last_seq)
"""


class CapturedKind(StrEnum):
    """What a row of the log holds; a newer release may have written others.

    Attributes:
        TO_DEVICE: a message to one device; body is Synapse's message_json.
        TRANSACTION: what the homeserver sent to one appservice; body is the request's.
        DEVICE_LIST: the devices or keys of a user changed. With an appservice it is for that one
            alone, and body says `changed` or `left`.
        SIGNATURES: the user signed keys of others; body is a JSON list of them.
        DEVICE_KEYS: count the device's keys again; or, with a body, what the homeserver counted:
            an object with `one_time_key_counts`, `unused_fallback_key_types` or both.
        DEVICE_DELETED: what is not sealed for the device is for nobody.
        INBOX_DELETED: the same only of what has a place in the homeserver's inbox up to stream_id;
            a device may have taken the name since, and what lies above is for that one.
        EVENT, EPHEMERAL: one object for one appservice.
    """

    TO_DEVICE = "to_device"
    TRANSACTION = "transaction"
    DEVICE_LIST = "device_list"
    SIGNATURES = "signatures"
    DEVICE_KEYS = "device_keys"
    DEVICE_DELETED = "device_deleted"
    INBOX_DELETED = "inbox_deleted"
    EVENT = "event"
    EPHEMERAL = "ephemeral"


class LogConsumedElsewhereError(BridgeError):
    """Rows of the log went away while its gate was held; roll back, and end the worker.

    Nobody but intake consumes the log, so this is a fault of ours or another hand in the tables.
    """

    def __init__(self, read: int, found: int) -> None:
        super().__init__(f"the capture log has another consumer: read {read} rows, found {found}")
        self.read = read
        self.found = found


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Numbers of the log that were drawn but not there to read; both ends belong to it.

    Attributes:
        undated: since when it must be settled is not known yet; the next pass notes that.
        settled: whoever drew them had ended before the log was read.
    """

    first_seq: int
    last_seq: int
    undated: bool
    settled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Where the log was left: all up to `head` is consumed, but for what lies in `gaps`.

    Attributes:
        drawn: the last number that a writer drew, about when the log was read.
        last_intake_at: whoever consumes changes it.
    """

    head: int
    drawn: int
    gaps: tuple[Gap, ...]
    last_intake_at: datetime | None


class Leaves(NamedTuple):
    """What a batch leaves behind, as `READ` is told of it.

    Attributes:
        head: all up to it is consumed, but for what lies in gaps; None: as the gate says.
        gap_firsts, gap_lasts: where the gaps that are new begin and end.
        taken_from_gaps: what it takes out of those that are not.
    """

    head: int | None = None
    gap_firsts: Sequence[int] = ()
    gap_lasts: Sequence[int] = ()
    taken_from_gaps: Sequence[int] = ()


class Captured(NamedTuple):
    """One row of the capture log, as `READ` returns it.

    Attributes:
        kind: one of `CapturedKind`, or what a newer release wrote.
        device_id: of a transaction the digest of its id, in hexadecimal: two with different
            bytes may be the same one, sent again.
        stream_id: with user and device the key of a row in a stream of the homeserver's.
        captured_at: in seconds since 1970, to the microsecond.
    """

    seq: int
    kind: str
    appservice_id: str | None
    user_id: str | None
    device_id: str | None
    stream_id: int | None
    body: bytes
    captured_at: float

    def __repr__(self) -> str:
        return f"Captured({self.seq}, {self.kind}, {len(self.body)} bytes)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one pass of intake takes from the log.

    Attributes:
        whole: nothing that was there to read is left behind.
    """

    gate: Gate
    rows: tuple[Captured, ...]
    whole: bool

    @property
    def empty(self) -> bool:
        """Whether there is nothing to consume, and nothing to note of a gap."""
        return not self.rows and not any(gap.undated or gap.settled for gap in self.gate.gaps)

    @property
    def settled(self) -> list[int]:
        """Where the gaps begin that are read for the last time."""
        return [gap.first_seq for gap in self.gate.gaps if gap.settled] if self.whole else []

    @property
    def leaves(self) -> "Leaves":
        """How the log is once this is consumed."""
        head, seqs = self.gate.head, [row.seq for row in self.rows]
        new = missing_numbers(head, [seq for seq in seqs if seq > head])
        return Leaves(
            head=max([head, *seqs]),
            gap_firsts=[first for first, _ in new],
            gap_lasts=[last for _, last in new],
            taken_from_gaps=[seq for seq in seqs if seq <= head],
        )

    @property
    def more_may_come(self) -> bool:
        """Whether a writer drew a number that was not there to read: it is at work, or gave up."""
        new = sum(row.seq > self.gate.head for row in self.rows)
        unsettled = any(not gap.settled for gap in self.gate.gaps)
        return unsettled or self.gate.drawn - self.gate.head > new


async def append_transaction(
    conn: Connection, appservice_id: str, *, txn_id: str, body: bytes
) -> bool:
    """Append a homeserver's transaction; False if these bytes came under this id before."""
    digest = hashlib.sha256(f"{len(txn_id)}:{txn_id}:".encode(errors="surrogatepass") + body)
    id_digest = hashlib.sha256(txn_id.encode(errors="surrogatepass")).hexdigest()
    done = await conn.execute(APPEND_TRANSACTION, appservice_id, digest.digest(), body, id_digest)
    fresh = done == "INSERT 0 1"
    if fresh:
        await notifications.wake_intake(conn)
    return fresh


async def same_registrations(conn: Connection, registrations_digest: bytes) -> bool:
    """Whether the worker that started last has these registrations, too."""
    return bool(await conn.fetchval(SAME_REGISTRATIONS, registrations_digest))


async def hold_gate(conn: Connection, registrations_digest: bytes) -> bool:
    """Become the one intake until the DB transaction ends; False if another is."""
    return await conn.fetchrow(HOLD_GATE, registrations_digest) is not None


async def read(
    conn: Connection,
    registrations_digest: bytes,
    *,
    max_rows: int,
    max_bytes: int,
    sweep: bool = False,
    behind: "Batch | None" = None,
) -> Batch | None:
    """What the next pass takes; None if the worker that started last has other registrations.

    Only who holds the gate may consume it; or who takes the gate as it was read here. With
    `behind` it is what comes after that batch, which is being consumed meanwhile; then who takes
    the gate as that one leaves it.
    """
    before = Leaves() if behind is None else behind.leaves
    records = await conn.fetch(READ, registrations_digest, max_rows, max_bytes, sweep, *before)
    if not records:
        return None
    records.sort(key=itemgetter("seq"))
    head, drawn, last_intake_at, gaps, first_seq, *_ = records[0]
    gate = Gate(
        head=head,
        drawn=drawn,
        gaps=tuple(
            Gap(first_seq=first, last_seq=last, undated=undated, settled=settled)
            for first, last, undated, settled in gaps or ()
        ),
        last_intake_at=last_intake_at,
    )
    rows = () if first_seq is None else tuple(Captured(*record[4:]) for record in records)
    size = sum(len(row.body) for row in rows)
    return Batch(gate=gate, rows=rows, whole=len(rows) < max_rows and size < max_bytes)


async def consume(conn: Connection, batch: Batch) -> None:
    """Delete what was read, remember the numbers in between, and move the head.

    Only for who holds the gate, and read behind it.

    Raises:
        LogConsumedElsewhereError: a row was gone.
    """
    seqs, leaves = [row.seq for row in batch.rows], batch.leaves
    gone = await conn.fetchval(CONSUME, seqs, leaves.head)
    if gone != len(seqs):
        raise LogConsumedElsewhereError(len(seqs), gone)
    if any(gap.undated for gap in batch.gate.gaps):
        await conn.execute(DATE_GAPS)
    if settled := batch.settled:
        await conn.execute(FORGET_GAPS, settled)
    if leaves.gap_firsts:
        await conn.execute(ADD_GAPS, leaves.gap_firsts, leaves.gap_lasts)


def missing_numbers(head: int, seqs: Sequence[int]) -> list[tuple[int, int]]:
    """The ranges above `head` that ascending `seqs` leave out, up to the last of them."""
    ranges = []
    for seq in seqs:
        if seq > head + 1:
            ranges.append((head + 1, seq - 1))
        head = seq
    return ranges
