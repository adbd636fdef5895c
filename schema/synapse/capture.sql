-- The capture in Synapse's database. It runs inside the homeserver's own DB transaction, so it
-- only inserts, parses nothing, names no column list of Synapse's tables, gives up after 100 ms
-- behind a lock, and never fails the homeserver: what it had to leave out, the reconciler finds.
create or replace function appservice_bridge.capture_device_inbox() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $$
begin
    insert into appservice_bridge.capture_log (kind, user_id, device_id, stream_id, body)
    select 'to_device', i.user_id, i.device_id, i.stream_id, convert_to(i.message_json, 'UTF8')
      from inserted i
     -- a scalar subquery stays an index probe per row, whatever plan the session has cached
     where (select true from appservice_bridge.foreign_user f where f.user_id = i.user_id) is null;
    -- a full queue of notifications would fail the homeserver's commit; who listens looks anyway
    if found and pg_notification_queue_usage() < 0.5 then
        perform pg_notify('appservice_bridge_capture', '');
    end if;
    return null;
exception when others then
    raise warning 'appservice_bridge: capture left out, sqlstate %', sqlstate;
    return null;
end
$$;
