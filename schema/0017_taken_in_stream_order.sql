-- older workers: from 0014
-- Asked by the whole key, forgotten in the order of the stream: one index serves both, and what is
-- new goes to its end.
alter table taken drop constraint taken_pkey;
alter table taken add primary key (stream_id, user_id, device_id);
drop index taken_by_stream;
