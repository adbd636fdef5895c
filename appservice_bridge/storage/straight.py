"""Messages that go from the log into the outboxes as they were captured, in one statement."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple, TypeAlias

import asyncpg

from appservice_bridge.domain.transaction import Item, Kind
from appservice_bridge.storage.capture_log import Batch, LogConsumedElsewhereError
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.outbox import OutboxMissingError

ROUTE: Final = """
-- straight.route: take the gate as it was read, and consume the rows $3 of the log; to whom each
-- goes, and how its entry begins, in the order given. All or nothing. What was taken before is a
-- repeat: nobody takes but who has the gate, so what is fresh needs no look for a conflict, which
-- would be a third of what taking costs. Where there is no room for payloads, the homeserver keeps
-- them. Nobody waits for this commit to be durable, as for no pass of intake.
with gate as materialized (
    select set_config('synchronous_commit', 'off', true) from intake_gate
     where registrations_digest = $1 and last_intake_at is not distinct from $2
       for update skip locked
), there as materialized (
    select (select count(*) from capture_log where seq = any($3::bigint[])) as rows,
           not exists (select from (select distinct unnest($5::text[])) a(appservice_id)
                        where (select true from outbox_head h
                                where h.appservice_id = a.appservice_id) is null) as outboxes
), goes as materialized (
    select from gate cross join there
     where there.rows = cardinality($3::bigint[]) and there.outboxes
), gone as (
    delete from capture_log where seq = any($3::bigint[]) and exists (select from goes)
), item as materialized (
    select g.place, g.appservice_id, l.kind, l.user_id, l.device_id, l.stream_id, l.captured_at,
           g.opening || substring(l.body from 2) as payload,
           (select true from taken t
             where t.stream_id = l.stream_id and t.user_id = l.user_id
               and t.device_id = l.device_id) is null as fresh
      from unnest($4::bigint[], $5::text[], $6::bytea[]) with ordinality
        as g(seq, appservice_id, opening, place)
      join capture_log l using (seq)
     where exists (select from goes)
), took as (
    insert into taken (user_id, device_id, stream_id)
    select distinct user_id, device_id, stream_id from item where fresh order by stream_id
), head as (
    update outbox_head h
       set position = h.position + n.items,
           bytes_in = h.bytes_in + case when n.is_full then 0 else n.bytes end
      from (select i.appservice_id, count(*) as items, sum(octet_length(i.payload)) as bytes,
                   (select keys_only from capture_watch)
                   or (select h.bytes_in - l.bytes_out
                         from outbox_head h join lane l using (appservice_id)
                        where h.appservice_id = i.appservice_id) >= $7 as is_full
              from item i where i.fresh group by i.appservice_id) n
     where h.appservice_id = n.appservice_id
    returning h.appservice_id, h.position - n.items as before, n.is_full
), routed as (
    insert into outbox (appservice_id, position, kind, user_id, device_id, stream_id, captured_at,
                        payload)
    select i.appservice_id,
           head.before + row_number() over (partition by i.appservice_id order by i.place),
           i.kind, i.user_id, i.device_id, i.stream_id, i.captured_at,
           case when head.is_full then '' else i.payload end
      from item i join head using (appservice_id) where i.fresh
), counted as (
    insert into ledger (appservice_id, kind, outcome, items)
    select appservice_id, kind, case when fresh then 'routed' else 'repeated' end, count(*)
      from item group by 1, 2, 3 order by 1, 2, 3
    on conflict (appservice_id, kind, outcome) do update set items = ledger.items + excluded.items
), dated as (
    update intake_gap set settled_by = pg_current_xact_id()
     where settled_by is null and exists (select from goes)
), forgotten as (
    delete from intake_gap where first_seq = any($8::bigint[]) and exists (select from goes)
), missing as (
    insert into intake_gap (first_seq, last_seq)
    select * from unnest($9::bigint[], $10::bigint[]) where exists (select from goes)
), moved as (
    update intake_gate
       set head = greatest(head, (select max(seq) from unnest($3::bigint[]) s(seq))),
           last_intake_at = clock_timestamp()
     where exists (select from goes)
    returning last_intake_at
)
select exists (select from gate) as held, there.rows, there.outboxes,
       (select array_agg((appservice_id, before, is_full)) from head) as grown,
       (select bool_and(fresh) from item) as all_fresh,
       extract(epoch from clock_timestamp())::float8 as now,
       (select last_intake_at from moved) as intake_at
  from there
"""


HANDED_ROWS: Final = 100
HANDED_BYTES: Final = 256 * 1024

Grown: TypeAlias = Mapping[str, Sequence[Item]]
"""What was appended, by appservice; nothing where it has to be read in the outbox."""


class Routed(NamedTuple):
    """What was appended, and when, which is how the gate was left."""

    grown: Grown
    intake_at: datetime


class Straight(NamedTuple):
    """One message on its way to one appservice.

    Attributes:
        seq: its number in the log.
        opening: what stands in its entry instead of the message's first byte.
    """

    seq: int
    appservice_id: str
    opening: bytes


async def route(
    conn: Connection,
    batch: Batch,
    registrations_digest: bytes,
    items: Sequence[Straight],
    *,
    appservice_bytes: int,
) -> Routed | None:
    """Consume a batch of nothing but these; returns whose outbox grew, if it is small by what, too.

    None, and nothing is done, if another is the intake, or was since the batch was read. A row may
    go to several appservices; no two rows have one key. Of payloads so many bytes may wait for one
    appservice; beyond it keys do.

    Raises:
        LogConsumedElsewhereError: a row was gone, and nothing is done.
        OutboxMissingError: an appservice was routed to that has none, and nothing is done.
    """
    seqs = [row.seq for row in batch.rows]
    try:
        done = await conn.fetchrow(
            ROUTE,
            registrations_digest,
            batch.gate.last_intake_at,
            seqs,
            *map(list, zip(*items, strict=True)),
            appservice_bytes,
            batch.settled,
            [first for first, _ in batch.missing],
            [last for _, last in batch.missing],
        )
    except asyncpg.UniqueViolationError:
        return None  # somebody took one of them meanwhile: the long way tells which
    if done is None or not done["held"]:
        return None
    _, rows, outboxes, grown, all_fresh, now, at = done
    if rows != len(seqs):
        raise LogConsumedElsewhereError(len(seqs), rows)
    if not outboxes:
        raise OutboxMissingError(sorted({item.appservice_id for item in items}))
    grown = grown or ()
    if all_fresh and not any(is_full for _, _, is_full in grown) and _is_small(batch):
        return Routed(_handed(batch, items, {id_: before for id_, before, _ in grown}, now), at)
    return Routed({appservice_id: () for appservice_id, _, _ in grown}, at)


def _is_small(batch: Batch) -> bool:
    size = sum(len(row.body) for row in batch.rows)
    return len(batch.rows) <= HANDED_ROWS and size <= HANDED_BYTES


def _handed(
    batch: Batch, items: Sequence[Straight], before: Mapping[str, int], now: float
) -> Grown:
    """The items as they stand in the outboxes, so that who sends them need not read them there."""
    rows = {row.seq: row for row in batch.rows}
    handed: dict[str, list[Item]] = defaultdict(list)
    clock = time.monotonic()
    for seq, appservice_id, opening in items:
        row = rows[seq]
        to = handed[appservice_id]
        position = before[appservice_id] + len(to) + 1
        captured = clock - (now - row.captured_at.timestamp())
        to.append(Item(position, Kind.TO_DEVICE, opening + row.body[1:], None, captured))
    return handed
