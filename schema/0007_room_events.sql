-- Room events that the homeserver committed, and forgot before it had sent them.

-- Up to where the homeserver's events were compared with what came from it. There is no row before
-- the first transaction: until then nobody knows that the homeserver sends them through the relay.
create table event_cursor (
    appservice_id text collate "C" primary key,
    settled       bigint not null
) with (fillfactor = 50);
