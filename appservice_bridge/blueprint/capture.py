"""What attaches the capture to Synapse's tables and detaches it, and how long that may take.

Each text is sent as one message and is one DB transaction: between its statements nobody can die
or freeze while the homeserver waits behind its locks.
"""

from collections.abc import Iterable
from typing import Final

from appservice_bridge.domain.capture import TRIGGERS, Trigger

TRIES: Final = 60  # with the rests between them: about a minute and a half at worst
BUSY: Final = frozenset({"55P03", "40P01", "40001"})  # lock not available, deadlock, serialization

PRESENT: Final = """
-- capture.present: triggers of ours, and whether they fire
select c.relname::text as table_name, t.tgname::text as name, t.tgenabled in ('O', 'A') as fires
  from pg_trigger t
  join pg_class c on c.oid = t.tgrelid
  join pg_proc p on p.oid = t.tgfoid
 where c.relnamespace = to_regnamespace('public')
   and p.pronamespace = to_regnamespace('appservice_bridge')
"""

SET_FLOOR: Final = """
-- capture.set_floor: the first attach starts at the present
insert into appservice_bridge.stream_floor (stream, settled)
select 'to_device', coalesce(max(stream_id), 0) from public.device_inbox
on conflict do nothing
"""

# With a limit, for the homeserver waits: what is left of them, polling or the reconciler finds.
CATCH_UP: Final = """
-- capture.catch_up: what came while the trigger was gone goes ahead of what it will see
insert into appservice_bridge.capture_log (kind, user_id, device_id, stream_id, body)
select 'to_device', i.user_id, i.device_id, i.stream_id, convert_to(i.message_json, 'UTF8')
  from public.device_inbox i
 where i.stream_id > (select greatest(f.settled, f.polled) from appservice_bridge.stream_floor f
                       where f.stream = 'to_device')
   and (select true from appservice_bridge.foreign_user f where f.user_id = i.user_id) is null
   and (select true from appservice_bridge.taken t
         where t.user_id = i.user_id and t.device_id = i.device_id
           and t.stream_id = i.stream_id) is null
   and (i.user_id, i.device_id, i.stream_id) not in (
        select c.user_id, c.device_id, c.stream_id from appservice_bridge.capture_log c
         where c.kind = 'to_device' and c.stream_id is not null)
 order by i.stream_id
 limit 1000
"""

FORGET_FLOOR: Final = """
-- capture.forget_floor: who attaches again starts at the present again, in every stream
delete from appservice_bridge.stream_floor
"""

# All locks together are waited for no longer than one may be. The tables are not always ours, and
# then only dropping the function drops its triggers.
DROP_FUNCTIONS: Final = """
-- capture.drop_functions
do $$
declare
    began timestamptz := clock_timestamp();
    left_ms integer;
    one record;
begin
    for one in
        select p.oid::regprocedure::text as function, count(distinct t.tgrelid) as tables
          from pg_proc p left join pg_trigger t on t.tgfoid = p.oid
         where p.pronamespace = to_regnamespace('appservice_bridge')
           and p.prorettype = 'trigger'::regtype
         group by p.oid
         order by 2 desc, 1
    loop
        left_ms := 100 - 1000 * extract(epoch from clock_timestamp() - began);
        perform set_config(
            'lock_timeout', greatest(1, left_ms / greatest(1, one.tables))::text, true);
        execute 'drop function ' || one.function || ' cascade';
    end loop;
end
$$
"""

DROP_DISABLED: Final = DROP_FUNCTIONS.replace(
    "group by p.oid", "group by p.oid having bool_or(t.tgenabled not in ('O', 'A'))"
).replace("capture.drop_functions", "capture.drop_disabled")

DROP_WAKE: Final = """
-- capture.drop_wake
drop function if exists appservice_bridge.wake_intake()
"""

# Synapse's sessions read what was there when they began, and commit without the disk.
BEGIN: Final = """
set transaction isolation level read committed;
set local lock_timeout = '100ms';
set local synchronous_commit = on;
"""


def missing(present: Iterable[tuple[str, str, bool]]) -> list[Trigger]:
    """The triggers that are not there, or do not fire, by the rows of `PRESENT`."""
    firing = {(table, name) for table, name, fires in present if fires}
    return [trigger for trigger in TRIGGERS if (trigger.table, trigger.name) not in firing]


def any_disabled(present: Iterable[tuple[str, str, bool]]) -> bool:
    """Whether a trigger is there that does not fire: it has to go before it can be made anew."""
    return any(not fires for _, _, fires in present)


def attach(table: str, triggers: Iterable[Trigger]) -> str:
    """Make these triggers on one table; it waits for every writer of it, and they for it.

    What is in the inbox when its trigger is made is the past.
    """
    statements = [trigger.create for trigger in triggers]
    if table == "device_inbox":
        statements += [SET_FLOOR, CATCH_UP]
    return BEGIN + ";\n".join(statements)


def mend() -> str:
    """Drop what has a trigger that does not fire, so that it can be made anew."""
    return BEGIN + DROP_DISABLED


def detach(*, refuse: str) -> str:
    """Drop every trigger of ours with its function; all of them or none.

    `refuse` is done behind the locks, and fails where the capture has to stay. The floor goes
    first: who compares holds it, and nobody of the homeserver shall wait for that.
    """
    return BEGIN + ";\n".join((FORGET_FLOOR, DROP_FUNCTIONS, DROP_WAKE, refuse))


def rest_seconds(tries: int) -> float:
    """How long to leave the homeserver alone after so many tries that found a table busy."""
    return min(2.0, 0.1 * 1.1**tries)
