"""Turns of many lanes in one statement, and so in one commit: an ack, and the seal that follows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from appservice_bridge.domain.transaction import BUILDER, Frame, digest
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.leases import Lease
from appservice_bridge.storage.sealed import Sealed, counts

TAKE: Final = """
-- turns.take: only for who holds the lane; one that somebody else works on is left out, and nothing
-- is sealed where more than waiting items has to be looked at, or anything is not as it was known.
-- With $20 the commit is not waited for: there are only acks in it
with given as (
    select * from unnest($1::text[], $2::bigint[], $3::bigint[], $4::int[])
        as g(appservice_id, token, number, status)
), held as materialized (
    select l.appservice_id, g.number as taken, g.status, l.epoch, l.next_number, l.sealed_to,
           l.paused_at is null and l.due_at <= clock_timestamp() as goes_on,
           case when $20 then set_config('synchronous_commit', 'off', true) end
      from lane l join given g on g.appservice_id = l.appservice_id and g.token = l.lease_token
     order by l.appservice_id for update of l skip locked
), gone as (
    delete from sealed s using held h
     where s.appservice_id = h.appservice_id and s.number = h.taken
    returning s.appservice_id, s.last_position, h.status
), pieces as (
    select place, array_agg(piece order by number) as frame
      from unnest($14::int[], $15::bytea[]) with ordinality as p(place, piece, number)
     group by place
), following as (
    select f.appservice_id, f.number, f.txn_id, f.first_position, f.last_position, f.items,
           f.body_bytes, string_to_array(f.slots, ',') as slots, pieces.frame, f.digest
      from unnest($5::text[], $6::bigint[], $7::text[], $8::bigint[], $9::bigint[], $10::int[],
                  $11::int[], $12::text[], $13::bytea[]) with ordinality
        as f(appservice_id, number, txn_id, first_position, last_position, items, body_bytes,
             slots, digest, place)
      join pieces on pieces.place = f.place
), plain as (
    select f.*, h.taken from following f
      join held h using (appservice_id)
      left join gone using (appservice_id)
     where h.goes_on and (h.taken is null or gone.appservice_id is not null)
       and f.first_position = h.sealed_to + 1
       and f.txn_id = 'ab' || h.epoch || '-' || h.next_number
       and not exists (select from sealed s
                        where s.appservice_id = f.appservice_id
                          and s.number is distinct from h.taken)
       and not exists (select from device_list_update u
                        where u.appservice_id = f.appservice_id and u.sealed_in is null)
       and not exists (select from device_key_state k
                        where k.appservice_id = f.appservice_id and k.waiting)
       and not exists (select from deleted_device d where d.appservice_id = f.appservice_id)
), acked as (
    update lane l
       set acked_to = gone.last_position, failed_attempts = 0, failing_since = null,
           due_at = '-infinity', last_outcome = 'acked', last_status = gone.status,
           last_attempt_at = clock_timestamp(), last_ack_at = clock_timestamp(),
           split_asked_at = null,
           sealed_to = coalesce(p.last_position, l.sealed_to),
           next_number = l.next_number + (p.number is not null)::int
      from gone left join plain p using (appservice_id)
     where l.appservice_id = gone.appservice_id
), moved as (
    update lane l
       set sealed_to = p.last_position, next_number = l.next_number + 1, split_asked_at = null
      from plain p
     where l.appservice_id = p.appservice_id and p.taken is null
), frozen as (
    insert into sealed (appservice_id, number, txn_id, first_position, last_position, items,
                        body_bytes, builder, slots, frame, digest)
    select appservice_id, number, txn_id, first_position, last_position, items, body_bytes, $16,
           slots, frame, digest
      from plain
), counted as (
    insert into ledger (appservice_id, kind, outcome, items)
    select c.appservice_id, c.kind, 'delivered', c.items
      from unnest($17::text[], $18::text[], $19::bigint[]) as c(appservice_id, kind, items)
      join gone using (appservice_id)
     order by c.appservice_id, c.kind
    on conflict (appservice_id, kind, outcome) do update set items = ledger.items + excluded.items
)
select h.appservice_id, gone.appservice_id is not null as acked,
       p.appservice_id is not null as sealed,
       head.position > h.sealed_to
       or exists (select from sealed s
                   where s.appservice_id = h.appservice_id and s.number is distinct from h.taken)
       or exists (select from device_list_update u
                   where u.appservice_id = h.appservice_id and u.sealed_in is null)
       or exists (select from device_key_state k
                   where k.appservice_id = h.appservice_id and k.waiting) as more
  from held h
  join outbox_head head using (appservice_id)
  left join gone using (appservice_id)
  left join plain p using (appservice_id)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """A transaction that is built and not sealed yet: items alone, and no device updates."""

    sealed: Sealed
    frame: Frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one lane wants committed.

    Attributes:
        taken: the transaction that the appservice took, items alone; None: none was in flight.
        status: of its answer.
        following: to be sealed, if everything is as its builder believed.
    """

    lease: Lease
    taken: Sealed | None = None
    status: int = 0
    following: Following | None = None


class Turned(NamedTuple):
    """What was committed.

    Attributes:
        acked: what was taken is let go of.
        sealed: the following transaction is in flight.
        more: than what was taken waited before this, or is in flight.
    """

    acked: bool
    sealed: bool
    more: bool


async def take(conn: Connection, turns: Sequence[Turn]) -> Mapping[str, Turned]:
    """What became of each turn, by appservice, one of each; one that is not in it was not taken.

    Such a lane is someone else's by now, or its row is locked: who wants to know takes the turn
    alone. `following` is left out wherever a look at the whole lane is needed first. A seal is
    durable, for what follows it is sent; an ack alone is not yet, for if a crash of Postgres undoes
    it, the same is sent again.
    """
    following = [(t.lease.appservice_id, t.following) for t in turns if t.following is not None]
    delivered = [
        (t.lease.appservice_id, kind, items)
        for t in turns
        if t.taken is not None
        for kind, items in counts(t.taken).items()
    ]
    rows = await conn.fetch(
        TAKE,
        [t.lease.appservice_id for t in turns],
        [t.lease.token for t in turns],
        [t.taken and t.taken.number for t in turns],
        [t.status for t in turns],
        [appservice_id for appservice_id, _ in following],
        [f.sealed.number for _, f in following],
        [f.sealed.txn_id for _, f in following],
        [f.sealed.first_position for _, f in following],
        [f.sealed.last_position for _, f in following],
        [f.sealed.items for _, f in following],
        [len(f.sealed.body) for _, f in following],
        [",".join(f.frame.slots) for _, f in following],
        [digest(f.sealed.body) for _, f in following],
        [place for place, (_, f) in enumerate(following, 1) for _ in f.frame.pieces],
        [piece for _, f in following for piece in f.frame.pieces],
        BUILDER,
        [appservice_id for appservice_id, _, _ in delivered],
        [kind for _, kind, _ in delivered],
        [items for _, _, items in delivered],
        not following,
    )
    return {appservice_id: Turned(*became) for appservice_id, *became in rows}
