-- Facts come in through capture_log, are routed into outbox, and leave as sealed transactions.
-- Keys that belong to an appservice start with it, so that the outbox can be sharded by appservice.

-- The one log of all that came in: triggers, relay and ingest append, intake consumes in seq order.
-- Cache 1: a writer that was answered before another began has the lower number.
create sequence capture_seq cache 1;

create table capture_log (
    seq           bigint primary key default nextval('capture_seq'),
    kind          text not null,     -- what else is set, and what body holds, its kind says
    appservice_id text,              -- whom the homeserver addressed; null: intake finds out
    user_id       text,
    device_id     text,
    stream_id     bigint,            -- the homeserver's own position, with user and device its key
    body          bytea not null default '',
    captured_at   timestamptz not null default clock_timestamp()
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_insert_scale_factor = 0.5, autovacuum_analyze_scale_factor = 0.5);
alter table capture_log alter column body set storage external;  -- ciphertext does not compress

-- Whoever locks this row is the one intake. Numbers up to head are consumed, but for the gaps.
create table intake_gate (
    only_row             boolean primary key default true check (only_row),
    head                 bigint not null default 0,
    registrations_digest bytea,      -- an intake with other registrations must not route
    last_intake_at       timestamptz
) with (fillfactor = 50);
insert into intake_gate default values;

-- Numbers below head that were not there to read: their writer is still at work, or gave up.
create table intake_gap (
    first_seq  bigint primary key,
    last_seq   bigint not null,
    -- When every DB transaction up to this ended, the writer did. It is the id of the pass after
    -- the one that noted the gap: that one drew its own id before it read, maybe before the writer.
    settled_by xid8,
    seen_at    timestamptz not null default clock_timestamp()
);

-- Local users that no registration owns. Only they are left out by the triggers.
create table foreign_user (user_id text collate "C" primary key);

-- Rows of the homeserver's inbox that were routed, whoever read them there.
create table taken (
    user_id   text collate "C",
    device_id text collate "C",
    stream_id bigint,
    primary key (user_id, device_id, stream_id)
);

create index taken_by_stream on taken (stream_id);  -- forgotten in this order

-- Up to where each stream of the homeserver's was compared with the log. Nobody reads at or below
-- settled again. Its row is the lock of whoever compares.
create table stream_floor (
    stream   text collate "C" primary key,  -- to_device | …
    settled  bigint not null,
    next     bigint,                 -- all of it was written when noted, and captured by next_seq
    next_seq bigint,
    noted_at timestamptz,
    polled   bigint                  -- all of it is committed and was read
);

-- What a registration was when its users were last looked for among the foreign ones.
create table appservice (
    appservice_id     text collate "C" primary key,
    namespaces_digest bytea not null,
    live_at           timestamptz    -- from then on everything is captured; null: not yet
);

-- Transactions of the homeserver that were stored: a repeat has the same id and the same bytes.
create table relayed (
    appservice_id text collate "C",
    digest        bytea,             -- sha256 of transaction id and body
    received_at   timestamptz not null default clock_timestamp(),
    primary key (appservice_id, digest)
);
create index relayed_by_age on relayed (received_at);

-- Room events that were routed: Synapse repeats them under new transaction ids after some errors.
create table seen_event (
    appservice_id text collate "C",
    event_digest  bytea,             -- sha256 of the event id
    seen_at       timestamptz not null default clock_timestamp(),
    primary key (appservice_id, event_digest)
);
create index seen_event_by_age on seen_event (seen_at);

-- The highest position given out: written by intake alone, so that it never waits for an ack.
create table outbox_head (
    appservice_id text collate "C" primary key,
    position      bigint not null default 0
) with (fillfactor = 50);

create table outbox (
    appservice_id text collate "C",
    position      bigint,
    kind          text not null,     -- event | ephemeral | to_device | dropped
    user_id       text,              -- recipient of a to-device message
    device_id     text,
    stream_id     bigint,
    captured_at   timestamptz not null,
    payload       bytea not null,    -- the item as it is sent, byte for byte
    primary key (appservice_id, position)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 20000);
alter table outbox alter column payload set storage external;

-- A sealed transaction: id, range, order, and every byte that is not an item's payload.
create table sealed (
    appservice_id  text collate "C",
    number         bigint,
    txn_id         text not null,
    first_position bigint not null,
    last_position  bigint not null,
    items          integer not null,
    body_bytes     integer not null,
    builder        smallint not null,
    slots          text[] not null,  -- which kind goes behind each piece of the frame but the last
    frame          bytea[] not null,
    digest         bytea not null,   -- sha256 of the body
    sealed_at      timestamptz not null default clock_timestamp(),
    primary key (appservice_id, number)
);

-- A process that serves lanes. Its leases hold for as long as it says that it is alive.
create table worker (
    worker_id   uuid primary key,
    name        text not null,
    started_at  timestamptz not null default clock_timestamp(),
    alive_until timestamptz not null
) with (fillfactor = 50);

-- The ordered path to one appservice: written by the worker that holds it, fenced by the token.
create table lane (
    appservice_id   text collate "C" primary key,
    worker_id       uuid,
    lease_token     bigint not null default 0,
    due_at          timestamptz not null default '-infinity',  -- rests until then
    woken_at        timestamptz,     -- a wake during an attempt ends the rest that follows it
    epoch           text not null,   -- of the ids it gives out
    next_number     bigint not null default 1,
    sealed_to       bigint not null default 0,
    acked_to        bigint not null default 0,
    purged_to       bigint not null default 0,
    failed_attempts integer not null default 0,  -- since the last ack
    failing_since   timestamptz,
    last_outcome    text,
    last_status     integer,
    last_attempt_at timestamptz,
    last_ack_at     timestamptz
) with (fillfactor = 50);

create table dead_letter (
    appservice_id  text collate "C",
    dead_letter_id uuid default gen_random_uuid(),
    kind           text not null,
    reason         text not null,
    user_id        text,
    device_id      text,
    stream_id      bigint,
    payload        bytea,
    buried_at      timestamptz not null default clock_timestamp(),
    primary key (appservice_id, dead_letter_id)
);

-- What went in and what came of it, counted in the DB transaction that did it.
create table ledger (
    appservice_id text collate "C",
    kind          text collate "C",
    outcome       text collate "C",  -- routed | delivered | buried | repeated | foreign | …
    items         bigint not null,
    primary key (appservice_id, kind, outcome)
) with (fillfactor = 50);

-- Which database this is: when it turns out to be another, transaction ids get a new epoch.
create table database_identity (
    only_row          boolean primary key default true check (only_row),
    system_identifier text not null,
    timeline          integer not null,
    epoch             text not null
);
