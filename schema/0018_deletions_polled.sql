-- older workers: from 0014
-- Deletions that Synapse wrote down among its tasks, once they are in the log: each is read once.
create table taken_deletion (
    task_id  text collate "C" primary key,
    taken_at timestamptz not null default clock_timestamp()
);
create index taken_deletion_by_age on taken_deletion (taken_at);

-- Where only the homeserver's position is known up to which a device was another one: of what waits
-- for it, nothing goes out that has a place in the inbox up to there.
alter table deleted_device
    add column inbox_upto bigint,    -- a position in the homeserver's inbox
    add column needed_to  bigint;    -- a position in the outbox: what is routed later is not meant
