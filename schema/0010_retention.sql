-- What is kept after its ack, what is worth nothing once it is old.

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
