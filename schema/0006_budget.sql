-- The bridge lives in the homeserver's database: how much it may take there, and who says that
-- it is still alive.

-- One row, read by every trigger. Without it everything is captured, payloads and all.
create table capture_watch (
    only_row        boolean primary key default true check (only_row),
    beat_at         timestamptz not null default clock_timestamp(),  -- a worker was alive then
    log_limit_bytes bigint not null default 10737418240,  -- while no worker looks after keys_only
    keys_only       boolean not null default false,       -- the budget is used up
    recompute       boolean not null default false        -- after a silence; until it is done
) with (fillfactor = 50);
insert into capture_watch default values;

-- Bytes of payload that wait: what came in less what went out. Two tables, as for positions:
-- intake writes the one, and whoever holds the lane, or purges behind it, the other.
alter table outbox_head add column bytes_in bigint not null default 0;
alter table lane add column bytes_out bigint not null default 0;

update outbox_head h
   set bytes_in = (select coalesce(sum(octet_length(o.payload)), 0) from outbox o
                    where o.appservice_id = h.appservice_id);

-- When intake was last woken, in milliseconds of Postgres' clock: a sequence, so that the triggers read
-- what is true now, whatever their snapshot.
create sequence capture_woken cache 1;
