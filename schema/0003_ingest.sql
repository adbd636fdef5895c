-- Batches of facts that were stored, and what was answered: the same batch again gets it again.
create table ingest_batch (
    batch_id    text collate "C" primary key,
    digest      bytea not null,      -- sha256 of what was signed
    answer      bytea not null,      -- the body of the 200
    received_at timestamptz not null default clock_timestamp()
);
create index ingest_batch_by_age on ingest_batch (received_at);
