-- What is known of a transaction that the appservice will not take, and what an operator said of it.

-- An attempt is open from before its first byte until its outcome is written. One that is found open
-- by who did not begin it, or that ended without a definite no, may have been processed.
alter table sealed add column attempt_open boolean not null default true;
alter table sealed add column doubtful boolean not null default false;
alter table sealed add column refusals integer not null default 0;  -- since it was sealed
alter table sealed add column refused_since timestamptz;
alter table sealed add column part_of bigint;   -- the number of the transaction it was split off

alter table lane add column body_cap_bytes integer;   -- learnt from 413; null: none
alter table lane add column body_cap_at timestamptz;
alter table lane add column updates_cap integer;      -- users and devices in one transaction, which
                                                      -- then holds no items; null: as many as fit
alter table lane add column paused_at timestamptz;    -- by an operator, who must resume it
alter table lane add column split_asked_at timestamptz;  -- by an operator, for what is in flight

alter table dead_letter add column redrivable boolean not null default false;  -- payload is an item
alter table dead_letter add column txn_id text;       -- in which it was refused
alter table dead_letter add column status integer;    -- the answer: its HTTP status, error code, and
alter table dead_letter add column errcode text;      -- beginning, which is never shown: it may quote
alter table dead_letter add column answer text;
