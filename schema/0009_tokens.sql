-- Which tokens are accepted of an appservice: those it has, and for a while those it had.
create table appservice_token (
    appservice_id  text collate "C",
    kind           text collate "C" check (kind in ('as_token', 'hs_token')),
    digest         bytea,            -- sha256 of the token
    accepted_until timestamptz,      -- null: it is in force
    primary key (appservice_id, kind, digest)
);

-- Of an appservice that was removed: if it ever comes back, no id is given out again that it may
-- remember.
alter table attached add column next_number bigint not null default 1;
