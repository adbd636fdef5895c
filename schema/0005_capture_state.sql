-- How facts are captured now, and what was looked at beside the to-device messages.

-- Signs of changed keys that were looked at: as taken, for the homeserver's stream of caches.
create table taken_invalidation (stream_id bigint primary key);

-- What the keys of a device came to when they were last counted by the recount of all.
create table key_summary (
    user_id   text collate "C",
    device_id text collate "C",
    summary   text not null,
    primary key (user_id, device_id)
) with (fillfactor = 80);
create index device_key_state_by_device on device_key_state (user_id, device_id);

-- What the last look at the homeserver's tables and our triggers found.
create table capture_state (
    only_row     boolean primary key default true check (only_row),
    mode         text not null default 'none' check (mode in ('triggers', 'polling', 'none')),
    since        timestamptz not null default clock_timestamp(),
    problems     text[] not null default '{}',  -- each with how to mend it
    unreadable   text[] not null default '{}',  -- tables that are left out
    looked_at    timestamptz,
    recounted_at timestamptz
) with (fillfactor = 50);
insert into capture_state default values;
