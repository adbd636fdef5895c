-- What operators changed, at the admin port or by a command; and their dead letters in pages.

-- Written in the DB transaction that did it, where it was done in the database; never payloads.
create table admin_audit (
    audit_id      bigint generated always as identity primary key,
    at            timestamptz not null default clock_timestamp(),
    name          text not null,     -- of the token; cli:<user of the system> for a command
    role          text not null,     -- of the token; cli
    address       text,              -- where the request came from
    action        text not null,
    appservice_id text collate "C",  -- null: it was not about a single one
    subjects      text[] not null,   -- what else it was done to: ids of dead letters, say
    outcome       text not null
);
create index admin_audit_by_age on admin_audit (at);

-- Dead letters are listed in pages, the newest first.
create index dead_letter_by_age on dead_letter (appservice_id, buried_at, dead_letter_id);
