"""Messages that go from the log into the outboxes as they were captured, in one statement."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from appservice_bridge.storage import capture_log
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.outbox import OutboxMissingError

ROUTE: Final = """
-- straight.route: consume the rows $1 of the log; to whom each goes, and how its entry begins, in
-- the order given. What was taken before is a repeat: nobody takes but who has the gate. Where
-- there is no room for payloads, the homeserver keeps them.
with gone as (
    delete from capture_log where seq = any($1::bigint[]) returning seq
), item as materialized (
    select g.place, g.appservice_id, l.kind, l.user_id, l.device_id, l.stream_id, l.captured_at,
           g.opening || substring(l.body from 2) as payload,
           (select true from taken t
             where t.stream_id = l.stream_id and t.user_id = l.user_id
               and t.device_id = l.device_id) is null as fresh
      from unnest($2::bigint[], $3::text[], $4::bytea[]) with ordinality
        as g(seq, appservice_id, opening, place)
      join capture_log l using (seq)
), took as (
    insert into taken (user_id, device_id, stream_id)
    select distinct user_id, device_id, stream_id from item where fresh
    on conflict do nothing
), head as (
    update outbox_head h
       set position = h.position + n.items,
           bytes_in = h.bytes_in + case when n.is_full then 0 else n.bytes end
      from (select i.appservice_id, count(*) as items, sum(octet_length(i.payload)) as bytes,
                   (select keys_only from capture_watch)
                   or (select h.bytes_in - l.bytes_out
                         from outbox_head h join lane l using (appservice_id)
                        where h.appservice_id = i.appservice_id) >= $5 as is_full
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
    returning appservice_id
), counted as (
    insert into ledger (appservice_id, kind, outcome, items)
    select appservice_id, kind, case when fresh then 'routed' else 'repeated' end, count(*)
      from item group by 1, 2, 3 order by 1, 2, 3
    on conflict (appservice_id, kind, outcome) do update set items = ledger.items + excluded.items
), moved as (
    update intake_gate set head = greatest(head, $6), last_intake_at = clock_timestamp()
)
select (select count(*) from gone) as gone,
       (select count(*) from item where fresh) = (select count(*) from routed) as all_routed,
       (select array_agg(appservice_id) from head) as appservice_ids
"""


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
    conn: Connection, batch: capture_log.Batch, items: Sequence[Straight], *, appservice_bytes: int
) -> set[str]:
    """Consume a batch of nothing but these; returns whose outbox grew.

    A row may go to several appservices; no two rows have one key. Of payloads so many bytes may
    wait for one appservice; beyond it keys do.

    Raises:
        LogConsumedElsewhereError: a row was gone.
        OutboxMissingError: an appservice was routed to that has none.
    """
    seqs = [row.seq for row in batch.rows]
    columns = [list(column) for column in zip(*items, strict=True)]
    done = await conn.fetchrow(ROUTE, seqs, *columns, appservice_bytes, seqs[-1])
    gone, all_routed, appservice_ids = done or (0, False, None)
    capture_log.require_all_there(seqs, gone)
    await capture_log.note_gaps(conn, batch)
    if not all_routed:
        raise OutboxMissingError(sorted({item.appservice_id for item in items}))
    return set(appservice_ids or ())
