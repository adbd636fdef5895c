-- What appservices must hear of devices is state, not log: the latest wins, however long they are
-- away. A transaction takes what waits; what changes meanwhile waits again for the next one.

-- The user's entry in the next device_lists. It goes with the ack of the transaction it is in.
create table device_list_update (
    appservice_id text collate "C",
    user_id       text collate "C",
    change        text not null check (change in ('changed', 'left')),
    sealed_in     bigint,            -- the number of its transaction; null: it waits
    captured_at   timestamptz not null default clock_timestamp(),
    primary key (appservice_id, user_id)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 20000);
create index device_list_update_waiting on device_list_update (appservice_id, user_id)
    where sealed_in is null;
create index device_list_update_sealed on device_list_update (appservice_id, sealed_in)
    where sealed_in is not null;

-- One row per device of an appservice that was ever told of: counts and unused fallback key types.
create table device_key_state (
    appservice_id  text collate "C",
    user_id        text collate "C",
    device_id      text collate "C",
    waiting        boolean not null default true,
    sealed_in      bigint,           -- the number of the transaction that tells of it
    recount        boolean not null, -- read in Synapse's tables at the seal
    counts         bytea,            -- else what the homeserver said, as JSON; null: nothing
    fallback_types bytea,
    captured_at    timestamptz not null default clock_timestamp(),  -- the latest change
    primary key (appservice_id, user_id, device_id)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 20000);
create index device_key_state_waiting on device_key_state (appservice_id, user_id, device_id)
    where waiting;
create index device_key_state_sealed on device_key_state (appservice_id, sealed_in)
    where sealed_in is not null;

-- Whom an appservice was told about: who shares a room with a user of it, and is none of its own.
create table tracked (
    appservice_id text collate "C",
    user_id       text collate "C",
    primary key (appservice_id, user_id)
);
create index tracked_by_user on tracked (user_id);

-- In which rooms the appservice's users are joined.
create table resident (
    appservice_id text collate "C",
    room_id       text collate "C",
    user_id       text collate "C",
    primary key (appservice_id, room_id, user_id)
);
create index resident_by_room on resident (room_id);

-- Up to where the homeserver's stream of memberships was followed. Above settled, what commits
-- late is still looked for; recent says which of it was followed already.
create table membership_cursor (
    only_row boolean primary key default true check (only_row),
    settled  bigint not null,
    recent   bigint[] not null default '{}',
    noted    bigint,                 -- followed when noted; settled when that was long ago
    noted_at timestamptz
) with (fillfactor = 50);

-- Device changes that were routed, whoever read them: as taken, for the stream of device lists.
create table taken_device_change (
    stream_id bigint,
    user_id   text collate "C",
    device_id text collate "C",
    primary key (stream_id, user_id, device_id)
);

-- Of a device that was deleted nothing goes out that was routed up to here and is not sealed.
create table deleted_device (
    appservice_id text collate "C",
    user_id       text collate "C",
    device_id     text collate "C",
    upto          bigint not null,   -- a position in the outbox
    primary key (appservice_id, user_id, device_id)
);

-- What a transaction holds beside the items of its range.
alter table sealed add column device_lists integer not null default 0;
alter table sealed add column device_keys integer not null default 0;
