-- The capture in Synapse's database. It runs inside the homeserver's own DB transaction, so it
-- only inserts, parses nothing, names no column list of Synapse's tables, gives up after 100 ms
-- behind a lock, and never fails the homeserver: what it had to leave out, the reconciler finds.
-- A bridge that has been silent for seven days is gone: nothing is written for it. The reconciler
-- and a recount make up for that if it comes back.

-- Commits that notify wait for each other, so at most one in five milliseconds does; whoever listens
-- looks again after that time. A sequence is written at once, whatever becomes of the DB transaction,
-- and never a heap of old versions. A full queue of notifications would fail the homeserver's commit.
create or replace function appservice_bridge.wake_intake() returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
    select setval('appservice_bridge.capture_woken',
                  (extract(epoch from clock_timestamp()) * 1000)::bigint),
           pg_notify('appservice_bridge_capture', '')
     where pg_notification_queue_usage() < 0.5
$$;

-- On device_inbox. Most of it is for nobody of ours: that is found before more is made ready than it
-- takes. A scalar subquery stays an index probe per row, whatever plan is cached; what the watch
-- says is asked once, and only if somebody's message is to be captured. When the budget is
-- used up, or while nobody consumes the log and it has reached its limit, only the key is written:
-- the homeserver holds the message as well.
create or replace function appservice_bridge.capture_device_inbox() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $$
begin
    if (select true from inserted i
         where (select true from appservice_bridge.foreign_user f
                 where f.user_id = i.user_id) is null
         limit 1) is null then
        return null;
    end if;
    insert into appservice_bridge.capture_log (kind, user_id, device_id, stream_id, body)
    select 'to_device', c.user_id, c.device_id, c.stream_id,
           case when c.told = 'keys' then '' else convert_to(c.message_json, 'UTF8') end
      from (select i.user_id, i.device_id, i.stream_id, i.message_json,
                   (select case when w.beat_at < now() - interval '7 days' then 'nothing'
                                when w.keys_only then 'keys'
                                when w.beat_at < now() - interval '5 minutes'
                                 and pg_total_relation_size('appservice_bridge.capture_log')
                                     > w.log_limit_bytes then 'keys' end
                      from appservice_bridge.capture_watch w) as told
              from inserted i
             where (select true from appservice_bridge.foreign_user f
                     where f.user_id = i.user_id) is null
            offset 0) c
     where c.told is distinct from 'nothing';
    if found and (select abs(extract(epoch from clock_timestamp()) * 1000 - w.last_value) > 5
                    from appservice_bridge.capture_woken w) then
        perform appservice_bridge.wake_intake();
    end if;
    return null;
exception when others then
    raise warning 'appservice_bridge: capture left out, sqlstate %', sqlstate;
    return null;
end
$$;

-- On device_lists_stream. Of foreign users, too: appservices share rooms with them.
create or replace function appservice_bridge.capture_device_list() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $$
begin
    insert into appservice_bridge.capture_log (kind, user_id, device_id, stream_id)
    select 'device_list', i.user_id, i.device_id, i.stream_id
      from inserted i
     where (select w.beat_at < now() - interval '7 days'
              from appservice_bridge.capture_watch w) is not true;
    if found and (select abs(extract(epoch from clock_timestamp()) * 1000 - w.last_value) > 5
                    from appservice_bridge.capture_woken w) then
        perform appservice_bridge.wake_intake();
    end if;
    return null;
exception when others then
    raise warning 'appservice_bridge: capture left out, sqlstate %', sqlstate;
    return null;
end
$$;

-- On user_signature_stream: whose keys somebody signed; only who signed hears of it.
create or replace function appservice_bridge.capture_signatures() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $$
begin
    insert into appservice_bridge.capture_log (kind, user_id, stream_id, body)
    select 'signatures', i.from_user_id, i.stream_id, convert_to(i.user_ids, 'UTF8')
      from inserted i
     where (select w.beat_at < now() - interval '7 days'
              from appservice_bridge.capture_watch w) is not true
       and (select true from appservice_bridge.foreign_user f
             where f.user_id = i.from_user_id) is null;
    if found and (select abs(extract(epoch from clock_timestamp()) * 1000 - w.last_value) > 5
                    from appservice_bridge.capture_woken w) then
        perform appservice_bridge.wake_intake();
    end if;
    return null;
exception when others then
    raise warning 'appservice_bridge: capture left out, sqlstate %', sqlstate;
    return null;
end
$$;

-- On the tables of one-time and fallback keys: recount this device, never one more or one less.
create or replace function appservice_bridge.capture_device_keys() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $$
begin
    insert into appservice_bridge.capture_log (kind, user_id, device_id)
    select distinct 'device_keys', c.user_id, c.device_id
      from changed c
     where (select w.beat_at < now() - interval '7 days'
              from appservice_bridge.capture_watch w) is not true
       and (select true from appservice_bridge.foreign_user f where f.user_id = c.user_id) is null;
    if found and (select abs(extract(epoch from clock_timestamp()) * 1000 - w.last_value) > 5
                    from appservice_bridge.capture_woken w) then
        perform appservice_bridge.wake_intake();
    end if;
    return null;
exception when others then
    raise warning 'appservice_bridge: capture left out, sqlstate %', sqlstate;
    return null;
end
$$;

-- On devices, when one is deleted: what waits for it is not for who takes its name next.
create or replace function appservice_bridge.capture_device_deleted() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $$
begin
    insert into appservice_bridge.capture_log (kind, user_id, device_id)
    select 'device_deleted', c.user_id, c.device_id
      from changed c
     where (select w.beat_at < now() - interval '7 days'
              from appservice_bridge.capture_watch w) is not true
       and (select true from appservice_bridge.foreign_user f where f.user_id = c.user_id) is null;
    if found and (select abs(extract(epoch from clock_timestamp()) * 1000 - w.last_value) > 5
                    from appservice_bridge.capture_woken w) then
        perform appservice_bridge.wake_intake();
    end if;
    return null;
exception when others then
    raise warning 'appservice_bridge: capture left out, sqlstate %', sqlstate;
    return null;
end
$$;
