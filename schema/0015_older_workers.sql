-- older workers: from 0014
-- Up to here a worker may be behind and go on; the line above says it of each migration. Null: only
-- workers that know this one.
alter table schema_version add column works_from integer;
