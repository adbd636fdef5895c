-- An operator's word for a transaction of one item, user or device: it is set aside. It goes with
-- its transaction, so it is never said of another.
alter table sealed add column bury_asked_at timestamptz;
