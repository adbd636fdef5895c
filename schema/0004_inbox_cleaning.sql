-- What was delivered leaves the homeserver's inbox apart from the ack; and what the inbox held
-- before an appservice came can be told from what was captured since.

-- Rows of the inbox whose ack is committed: the cleaner takes them out, or leaves them, and
-- forgets them here either way.
create table inbox_delivered (
    appservice_id text collate "C",
    user_id       text collate "C",
    device_id     text collate "C",
    stream_id     bigint,
    delivered_at  timestamptz not null default clock_timestamp(),
    primary key (appservice_id, user_id, device_id, stream_id)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 20000);
create index inbox_delivered_by_age on inbox_delivered (delivered_at, stream_id);

-- Devices that were seen to read their inbox themselves, by /sync: nothing is taken from them.
create table syncing_device (
    user_id    text collate "C",
    device_id  text collate "C",
    noticed_at timestamptz not null default clock_timestamp(),
    primary key (user_id, device_id)
);

-- Whoever locks this row is the one who cleans.
create table inbox_cleaner (only_row boolean primary key default true check (only_row));
insert into inbox_cleaner default values;

-- Where the homeserver's stream of to-device messages was when an appservice was first announced.
-- What its users' inboxes hold up to there is older than the bridge. It outlives the registration:
-- who comes back was attached all the same.
create table attached (
    appservice_id text collate "C" primary key,
    stream_id     bigint             -- null: nobody could read the homeserver's tables then
);
-- Of those who came before this was written down it is no longer known what they were given.
insert into attached (appservice_id, stream_id) select appservice_id, 0 from outbox_head;
