"""Deletions of devices that Synapse wrote down among its tasks, for where no trigger tells.

What polling sees of a device is that it is there or not. One that is deleted and made again between
two looks passes for one that stayed. But Synapse deletes what its inbox holds for a device by a
task, which names the device and the position in the inbox up to which it was another one; and keeps
the task for a week. How what may happen in between comes out:

- Synapse reads the position, deletes the device, writes the task: three steps. What it committed
  up to the position is there when the task is. So what is read of the inbox after the task was, and
  put into the log in one DB transaction with it, is all that the task speaks of.
- A device of the name may be there, have messages, and have got some, before the task is. They have
  higher positions, and are left alone, whatever the order in which they were routed.
- A message that came between the position and the deletion is, for Synapse too, the new device's.
- Deleted and made again several times: each task speaks of what was before it, so the last of all.
- A look that sees the device gone says so as well, of all that was routed by then. Both together
  drop no more: the one looks again after it drew its number, the other goes by position.
- What Synapse deleted before it was read is for nobody; what was sealed does not change.
- A worker that dies before the commit leaves neither messages nor tasks; after it both are in the
  log. Another that read the same task waits for that commit, and finds the task taken.
- A backlog of more than one batch goes ahead of the tasks, and may be sealed before they are there.
- A task of a user whom nobody owns is remembered as the others are, and says nothing.
- A device with nothing in the inbox has no task; it needs none, unless it empties its inbox itself.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from appservice_bridge.domain.facts import LARGEST_INTEGER
from appservice_bridge.domain.synapse_tables import Stream
from appservice_bridge.storage import floors
from appservice_bridge.storage.database import Connection, reading_synapse

# Who wrote a task may have a clock of its own, and commit late. Synapse stamps a task again when it
# begins and when it ends, so one that is missed comes once more.
OVERLAP_SECONDS: Final = 60.0
KEEP_DAYS: Final = 8  # Synapse keeps what is done for seven, and what is not done for longer

_STORABLE: Final = re.compile(r"[^\0\ud800-\udfff]*", re.DOTALL)

READABLE: Final = """
-- inbox_deletions.readable
select coalesce(has_table_privilege(to_regclass('public.scheduled_tasks'), 'SELECT'), false)
"""

SET_FLOOR: Final = """
-- inbox_deletions.set_floor
insert into stream_floor (stream, settled)
select 'scheduled_tasks', least(coalesce(max(timestamp), 0),
                                (extract(epoch from clock_timestamp()) * 1000)::bigint)
  from public.scheduled_tasks
 where action = 'delete_device_messages'
on conflict do nothing
"""

TAKE_PAST: Final = """
-- inbox_deletions.take_past: what is not done yet will be stamped again
insert into taken_deletion (task_id)
select id from public.scheduled_tasks where action = 'delete_device_messages'
on conflict do nothing
"""

LAST: Final = """
-- inbox_deletions.last: no further than our own clock, for theirs may be set back
select least(max(timestamp), (extract(epoch from clock_timestamp()) * 1000)::bigint)
  from public.scheduled_tasks
 where action = 'delete_device_messages'
   and timestamp > (select greatest(settled, polled) from stream_floor
                     where stream = 'scheduled_tasks')
having max(timestamp) is not null
"""

FRESH: Final = """
-- inbox_deletions.fresh: nobody waits for anybody here; whoever takes them first has them
select t.id, t.params from public.scheduled_tasks t
 where t.timestamp > (select greatest(settled, polled) from stream_floor
                       where stream = 'scheduled_tasks') - $1::bigint
   and t.action = 'delete_device_messages'
   and (select true from taken_deletion d where d.task_id = t.id) is null
 order by t.timestamp
 limit $2
"""

APPEND: Final = """
-- inbox_deletions.append: each once; of users of nobody and without a device only that it was seen
with fresh as (
    insert into taken_deletion (task_id) select id from unnest($1::text[]) as g(id) order by id
    on conflict do nothing
    returning task_id
), appended as (
    insert into capture_log (kind, user_id, device_id, stream_id)
    select 'inbox_deleted', g.user_id, g.device_id, g.upto
      from unnest($1::text[], $2::text[], $3::text[], $4::bigint[])
               as g(task_id, user_id, device_id, upto)
      join fresh using (task_id)
     where g.user_id is not null
       and (select true from foreign_user f where f.user_id = g.user_id) is null
     order by g.upto
    returning seq
)
select count(*) from appended
"""

FORGET_TAKEN: Final = """
-- inbox_deletions.forget_taken: of tasks that are there no more
delete from taken_deletion t using (
    select task_id from taken_deletion d
     where taken_at < now() - make_interval(days => $1)
       and (select true from public.scheduled_tasks s where s.id = d.task_id) is null
     order by taken_at limit $2) old
 where t.task_id = old.task_id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What Synapse set itself to delete.

    Attributes:
        user_id, device_id: None where it does not say whose inbox.
        upto: a position in the inbox, the last that goes.
    """

    id: str
    user_id: str | None = None
    device_id: str | None = None
    upto: int | None = None


async def set_floor(conn: Connection) -> None:
    """Start at the present, unless it was started before, or the table may not be read.

    Raises:
        SourceUnreadableError: the table is not as it was.
    """
    with reading_synapse():
        if await conn.fetchval(READABLE) and await conn.execute(SET_FLOOR) == "INSERT 0 1":
            await conn.execute(TAKE_PAST)


async def fresh(conn: Connection, *, limit: int) -> tuple[Task, ...]:
    """Tasks that nobody took; what they speak of is in the inbox now, or never will be.

    Raises:
        SourceUnreadableError: the table is not as it was.
    """
    with reading_synapse():
        rows = await conn.fetch(FRESH, int(OVERLAP_SECONDS * 1000), limit)
    return tuple(_task(row["id"], row["params"]) for row in rows)


async def append(conn: Connection, tasks: Sequence[Task]) -> int:
    """Append tasks, in the DB transaction that appended the inbox as it was after they were read.

    Returns how many are news; who took one before this is waited for.
    """
    columns = [(task.id, task.user_id, task.device_id, task.upto) for task in tasks]
    appended: int = await conn.fetchval(APPEND, *map(list, zip(*columns, strict=True)))
    return appended


async def move_on(conn: Connection) -> None:
    """Read on from the last task that is there; only where none was fresh.

    Raises:
        SourceUnreadableError: the table is not as it was.
    """
    with reading_synapse():
        await floors.set_polled(conn, Stream.TASKS, await conn.fetchval(LAST))


async def forget_taken(conn: Connection, *, batch: int, days: int = KEEP_DAYS) -> int:
    """Forget tasks that Synapse forgot; returns how many.

    Raises:
        SourceUnreadableError: the table is not as it was.
    """
    with reading_synapse():
        if not await conn.fetchval(READABLE):
            return 0
        done = await conn.execute(FORGET_TAKEN, days, batch)
    return int(done.split()[1])


def _task(id_: str, params: str | None) -> Task:
    try:
        said = json.loads(params or "{}")
        user_id, device_id, upto = (
            said[name] for name in ("user_id", "device_id", "up_to_stream_id")
        )
    except (ValueError, KeyError, TypeError):
        return Task(id=id_)
    if not (_is_text(user_id) and _is_text(device_id)):
        return Task(id=id_)
    if type(upto) is not int or not 0 <= upto <= LARGEST_INTEGER:
        return Task(id=id_)
    return Task(id=id_, user_id=user_id, device_id=device_id, upto=upto)


def _is_text(said: object) -> bool:
    """Whether Postgres would store it."""
    return isinstance(said, str) and _STORABLE.fullmatch(said) is not None
