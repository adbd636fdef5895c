"""Messages that go from the log into the outboxes as they were captured, in one statement."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple, TypeAlias

import asyncpg

from appservice_bridge.domain.transaction import Item, Kind
from appservice_bridge.storage.capture_log import Batch, Captured, LogConsumedElsewhereError
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.outbox import OutboxMissingError

ROUTE: Final = """
-- straight.route: take the gate as it was read, and consume the rows $3 of the log; $4 to $7: to
-- whom each goes, as the how manieth of his, and how its entry begins; $8 to $10: how many items
-- and bytes each appservice gets. All or nothing; nothing if any was taken before. Nobody takes but
-- who has the gate: if somebody did, it ends with the key of `taken`. Where there is no room for
-- payloads, the homeserver keeps them. Nobody waits for this commit to be durable, as for no pass
-- of intake.
with gate as materialized (
    select set_config('synchronous_commit', 'off', true) from intake_gate
     where registrations_digest = $1 and last_intake_at is not distinct from $2
       for update skip locked
), there as materialized (
    select count(*) as rows,
           bool_and((select true from taken t
                      where t.stream_id = l.stream_id and t.user_id = l.user_id
                        and t.device_id = l.device_id) is null) as fresh,
           not exists (select from unnest($8::text[]) a(appservice_id)
                        where (select true from outbox_head h
                                where h.appservice_id = a.appservice_id) is null) as outboxes
      from capture_log l where seq = any($3::bigint[])
), goes as materialized (
    select from gate cross join there
     where there.rows = cardinality($3::bigint[]) and there.fresh and there.outboxes
), gone as (
    delete from capture_log where seq = any($3::bigint[]) and exists (select from goes)
), took as (
    insert into taken (user_id, device_id, stream_id)
    select user_id, device_id, stream_id from capture_log
     where seq = any($3::bigint[]) and exists (select from goes)
), gets as materialized (
    select appservice_id, items, bytes,
           (select keys_only from capture_watch)
           or (select h.bytes_in - l.bytes_out
                 from outbox_head h join lane l using (appservice_id)
                where h.appservice_id = g.appservice_id) >= $11 as is_full
      from unnest($8::text[], $9::bigint[], $10::bigint[]) as g(appservice_id, items, bytes)
     where exists (select from goes)
), head as (
    update outbox_head h
       set position = h.position + g.items,
           bytes_in = h.bytes_in + case when g.is_full then 0 else g.bytes end
      from gets g
     where h.appservice_id = g.appservice_id
    returning h.appservice_id, h.position - g.items as before, g.is_full
), routed as (
    insert into outbox (appservice_id, position, kind, user_id, device_id, stream_id, captured_at,
                        payload)
    select i.appservice_id, head.before + i.nth, l.kind, l.user_id, l.device_id, l.stream_id,
           l.captured_at,
           case when head.is_full then '' else i.opening || substring(l.body from 2) end
      from unnest($4::bigint[], $5::text[], $6::bigint[], $7::bytea[])
        as i(seq, appservice_id, nth, opening)
      join head using (appservice_id)
      join capture_log l using (seq)
), counted as (
    insert into ledger (appservice_id, kind, outcome, items)
    select appservice_id, 'to_device', 'routed', items from gets order by appservice_id
    on conflict (appservice_id, kind, outcome) do update set items = ledger.items + excluded.items
), dated as (
    update intake_gap set settled_by = pg_current_xact_id()
     where settled_by is null and exists (select from goes)
), forgotten as (
    delete from intake_gap where first_seq = any($12::bigint[]) and exists (select from goes)
), missing as (
    insert into intake_gap (first_seq, last_seq)
    select * from unnest($13::bigint[], $14::bigint[]) where exists (select from goes)
), moved as (
    update intake_gate
       set head = greatest(head, (select max(seq) from unnest($3::bigint[]) s(seq))),
           last_intake_at = clock_timestamp()
     where exists (select from goes)
    returning last_intake_at
)
select exists (select from gate) as held, there.rows, there.fresh, there.outboxes,
       (select array_agg((appservice_id, before, is_full)) from head) as grown,
       extract(epoch from clock_timestamp())::float8 as now,
       (select last_intake_at from moved) as intake_at
  from there
"""


HANDED_ROWS: Final = 100
HANDED_BYTES: Final = 256 * 1024

Grown: TypeAlias = Mapping[str, Sequence[Item]]
"""What was appended, by appservice; nothing where it has to be read in the outbox."""


class Went(NamedTuple):
    """What was appended, and when, which is how the gate was left."""

    grown: Grown
    intake_at: datetime


class Straight(NamedTuple):
    """One message on its way to one appservice.

    Attributes:
        row: of the log.
        opening: what stands in its entry instead of the message's first byte.
    """

    row: Captured
    appservice_id: str
    opening: bytes


@dataclass(slots=True)
class _Gets:
    """What one appservice gets of a batch: how many items, of how many bytes."""

    items: int = 0
    bytes: int = 0

    def add(self, item: Straight) -> int:
        """Count it; returns as the how manieth it goes there."""
        self.items += 1
        self.bytes += len(item.opening) + len(item.row.body) - 1
        return self.items


async def route(
    conn: Connection,
    batch: Batch,
    registrations_digest: bytes,
    items: Sequence[Straight],
    *,
    appservice_bytes: int,
) -> Went | None:
    """Consume a batch of nothing but these; returns whose outbox grew, if it is small by what, too.

    None, and nothing is done, if another is the intake, or was since the batch was read, or if one
    of these was taken before. A row may go to several appservices; no two rows have one key. Of
    payloads so many bytes may wait for one appservice; beyond it keys do.

    Raises:
        LogConsumedElsewhereError: a row was gone, and nothing is done.
        OutboxMissingError: an appservice was routed to that has none, and nothing is done.
    """
    seqs, leaves = [row.seq for row in batch.rows], batch.leaves
    gets: dict[str, _Gets] = defaultdict(_Gets)
    places = [gets[item.appservice_id].add(item) for item in items]
    try:
        done = await conn.fetchrow(
            ROUTE,
            registrations_digest,
            batch.gate.last_intake_at,
            seqs,
            [item.row.seq for item in items],
            [item.appservice_id for item in items],
            places,
            [item.opening for item in items],
            list(gets),
            [each.items for each in gets.values()],
            [each.bytes for each in gets.values()],
            appservice_bytes,
            batch.settled,
            leaves.gap_firsts,
            leaves.gap_lasts,
        )
    except asyncpg.UniqueViolationError:
        return None  # somebody took one past the gate: the long way tells which
    if done is None or not done["held"]:
        return None
    _, rows, fresh, outboxes, grown, now, at = done
    if rows != len(seqs):
        raise LogConsumedElsewhereError(len(seqs), rows)
    if not fresh:
        return None
    if not outboxes:
        raise OutboxMissingError(sorted(gets))
    if not any(is_full for _, _, is_full in grown) and _is_small(batch):
        return Went(_handed(items, {id_: before for id_, before, _ in grown}, now), at)
    return Went({appservice_id: () for appservice_id, _, _ in grown}, at)


def _is_small(batch: Batch) -> bool:
    size = sum(len(row.body) for row in batch.rows)
    return len(batch.rows) <= HANDED_ROWS and size <= HANDED_BYTES


def _handed(items: Sequence[Straight], before: Mapping[str, int], now: float) -> Grown:
    """The items as they stand in the outboxes, so that who sends them need not read them there."""
    handed: dict[str, list[Item]] = defaultdict(list)
    clock = time.monotonic()
    for row, appservice_id, opening in items:
        to = handed[appservice_id]
        position = before[appservice_id] + len(to) + 1
        captured = clock - (now - row.captured_at)
        to.append(Item(position, Kind.TO_DEVICE, opening + row.body[1:], None, captured))
    return handed
