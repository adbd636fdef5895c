-- What is kept after its ack, what is worth nothing once it is old, and counts that add up.

-- Transactions that were acknowledged and wait for a replay: their items stay in the outbox until
-- then. There are rows only where delivery.keep_delivered_seconds says so, which is looked up when
-- they are purged: a shorter time holds for what is kept already.
create table kept (
    appservice_id  text collate "C",
    number         bigint,
    txn_id         text not null,
    first_position bigint not null,
    last_position  bigint not null,
    items          integer not null,
    payload_bytes  bigint not null,
    acked_at       timestamptz not null default clock_timestamp(),
    -- Its rows of the homeserver's inbox were noted for the cleaner, and need not wait with it.
    noted          boolean not null default false,
    primary key (appservice_id, number)
);
create index kept_not_noted on kept (appservice_id, number) where not noted;
create index kept_by_txn_id on kept (appservice_id, txn_id);

-- The type of an ephemeral event that has a time to live: m.typing | m.presence.
alter table outbox add column fleeting text;

-- Where the comparison of room events began: what is older never came this way.
alter table event_cursor add column began bigint;
update event_cursor set began = settled;

-- One word stood for what was set aside on its way in, and for what was after it was routed. Now
-- the former is refused. Which was which follows from what else is known of what was routed.
with away as (
    select g.appservice_id, g.kind, g.items as buried,
           greatest(0, least(g.items, coalesce((
               select sum(case when i.outcome = 'routed' then i.items else -i.items end)
                 from ledger i
                where i.appservice_id = g.appservice_id and i.kind = g.kind
                  and i.outcome in ('routed', 'delivered', 'dropped')), 0) - (
               select count(*) from outbox o join lane l using (appservice_id)
                where o.appservice_id = g.appservice_id and o.kind = g.kind
                  and o.position > l.acked_to))) as after_routing
      from ledger g
     where g.outcome = 'buried'
), refused as (
    insert into ledger (appservice_id, kind, outcome, items)
    select appservice_id, kind, 'refused', buried - after_routing
      from away where buried > after_routing
    on conflict (appservice_id, kind, outcome) do update set items = ledger.items + excluded.items
)
update ledger g set items = a.after_routing
  from away a
 where g.appservice_id = a.appservice_id and g.kind = a.kind and g.outcome = 'buried';
