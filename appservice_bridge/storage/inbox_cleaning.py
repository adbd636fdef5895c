"""Rows of Synapse's inbox that were delivered: which of them may go, and their going."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, NamedTuple

from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.repeats import InboxKey

MAY_DELETE: Final = """
-- inbox_cleaning.may_delete: the one right that nothing else of the bridge needs
select coalesce(has_table_privilege(to_regclass('public.device_inbox'), 'DELETE'), false)
"""

HOLD: Final = """
-- inbox_cleaning.hold: one cleaner at a time; in which order it cleans matters to nobody
select true from inbox_cleaner for update skip locked
"""

BE_BRIEF: Final = """
-- inbox_cleaning.be_brief: the homeserver may wait for a row of ours, so nothing is waited for
-- here, not even the disk: a commit that is lost cleans the same rows again
select set_config('lock_timeout', '100ms', true), set_config('synchronous_commit', 'off', true)
"""

RIPE: Final = """
-- inbox_cleaning.ripe: what was delivered so long ago, the oldest first, and what is known of it.
-- Scalar subqueries stay index probes per row, whatever plan is cached.
select d.appservice_id, d.user_id, d.device_id, d.stream_id,
       (select true from public.device_inbox i
         where i.user_id = d.user_id and i.device_id = d.device_id
           and i.stream_id = d.stream_id limit 1) is not null as in_inbox,
       (select true from public.devices v
         where v.user_id = d.user_id and v.device_id = d.device_id
           and not v.hidden limit 1) is not null as device_exists,
       (select true from syncing_device s
         where s.user_id = d.user_id and s.device_id = d.device_id) is not null as syncs
  from (select appservice_id, user_id, device_id, stream_id from inbox_delivered
         where delivered_at < clock_timestamp() - make_interval(secs => $1)
         order by delivered_at, stream_id limit $2) d
"""

READS_SLIDING: Final = """
-- inbox_cleaning.reads_sliding: whether the table is there, as we know it, and may be read
select coalesce(has_table_privilege(to_regclass('public.sliding_sync_connections'), 'SELECT'),
                false)
   and (select count(*) = 2 from pg_attribute
         where attrelid = to_regclass('public.sliding_sync_connections')
           and attname in ('user_id', 'effective_device_id') and not attisdropped)
"""

SLIDING: Final = """
-- inbox_cleaning.sliding: devices that have a connection of sliding sync
select distinct d.user_id, d.device_id
  from unnest($1::text[], $2::text[]) as d(user_id, device_id)
 where (select true from public.sliding_sync_connections c
         where c.user_id = d.user_id and c.effective_device_id = d.device_id
         limit 1) is not null
"""

NOTICE: Final = """
-- inbox_cleaning.notice
insert into syncing_device (user_id, device_id) select * from unnest($1::text[], $2::text[])
on conflict do nothing
"""

FORGET_DEVICES: Final = """
-- inbox_cleaning.forget_devices: who takes a deleted device's name is another device
delete from syncing_device s
 where (select true from public.devices v
         where v.user_id = s.user_id and v.device_id = s.device_id limit 1) is null
"""

SETTLE: Final = """
-- inbox_cleaning.settle
delete from inbox_delivered d
 using unnest($1::text[], $2::text[], $3::text[], $4::bigint[])
    as k(appservice_id, user_id, device_id, stream_id)
 where d.appservice_id = k.appservice_id and d.user_id = k.user_id
   and d.device_id = k.device_id and d.stream_id = k.stream_id
"""

CLEAN: Final = """
-- inbox_cleaning.clean: of one device, so that no plan but the inbox's own index is ever chosen
delete from public.device_inbox where user_id = $1 and device_id = $2 and stream_id = any($3)
"""


class InboxMovedError(BridgeError):
    """The homeserver deleted rows that were about to be deleted; roll back, and look again.

    The next look finds them gone, and so the device to be one that syncs.
    """

    def __init__(self) -> None:
        super().__init__("the homeserver deleted rows of its inbox meanwhile")


class Device(NamedTuple):
    """One device of one user."""

    user_id: str
    device_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """A row of the homeserver's inbox that an appservice has acknowledged.

    Attributes:
        in_inbox: it is still there.
        device_exists: and not hidden.
        syncs: its device was seen to read its inbox itself.
    """

    appservice_id: str
    user_id: str
    device_id: str
    stream_id: int
    in_inbox: bool
    device_exists: bool
    syncs: bool

    @property
    def device(self) -> Device:
        """Whose inbox it is in."""
        return Device(self.user_id, self.device_id)

    @property
    def key(self) -> InboxKey:
        """Its key there."""
        return InboxKey(self.user_id, self.device_id, self.stream_id)


async def may_delete(conn: Connection) -> bool:
    """Whether this role may delete from the homeserver's inbox."""
    return bool(await conn.fetchval(MAY_DELETE))


async def hold(conn: Connection) -> bool:
    """Become the one cleaner until the DB transaction ends; False if another is."""
    return bool(await conn.fetchval(HOLD))


async def be_brief(conn: Connection) -> None:
    """For this DB transaction: wait for no lock, nor for the disk."""
    await conn.execute(BE_BRIEF)


async def ripe(conn: Connection, *, grace_seconds: float, limit: int) -> list[Delivered]:
    """Rows acknowledged so many seconds ago, the oldest first."""
    return [Delivered(**row) for row in await conn.fetch(RIPE, grace_seconds, limit)]


async def sliding(conn: Connection, devices: Sequence[Device]) -> set[Device]:
    """Those of some devices that use sliding sync; none, where that cannot be read."""
    if not devices or not await conn.fetchval(READS_SLIDING):
        return set()
    return {Device(*row) for row in await conn.fetch(SLIDING, *_columns(devices, 2))}


async def notice(conn: Connection, devices: Sequence[Device]) -> None:
    """Remember devices that sync: nothing is ever cleaned for them again."""
    await conn.execute(NOTICE, *_columns(devices, 2))


async def forget_devices(conn: Connection) -> None:
    """Forget devices that sync and were deleted."""
    await conn.execute(FORGET_DEVICES)


async def settle(conn: Connection, rows: Sequence[Delivered]) -> None:
    """These rows are decided upon; whether they stay or go."""
    keys = [(row.appservice_id, *row.key) for row in rows]
    await conn.execute(SETTLE, *_columns(keys, 4))


async def clean(conn: Connection, keys: Iterable[InboxKey]) -> None:
    """Delete rows of the homeserver's inbox, in sorted order: the last thing before the commit.

    Raises:
        InboxMovedError: not all were there any more.
    """
    for device, of_it in groupby(sorted(set(keys)), key=lambda key: key[:2]):
        stream_ids = [key.stream_id for key in of_it]
        done = await conn.execute(CLEAN, *device, stream_ids)
        if int(done.split()[1]) < len(stream_ids):
            raise InboxMovedError


def _columns(rows: Sequence[Sequence[object]], width: int) -> list[list[object]]:
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(width)]
