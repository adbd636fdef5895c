"""Devices that were deleted: a mark of what is for nobody any more, until a seal has met it."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.device_updates import DeviceKey

MARK: Final = """
-- deleted_devices.mark: as far as the outbox reaches now
insert into deleted_device (appservice_id, user_id, device_id, upto)
select g.appservice_id, g.user_id, g.device_id, h.position
  from unnest($1::text[], $2::text[], $3::text[]) as g(appservice_id, user_id, device_id)
  join outbox_head h using (appservice_id)
on conflict (appservice_id, user_id, device_id) do update set upto = excluded.upto
"""

MARK_INBOX: Final = """
-- deleted_devices.mark_inbox: only of what has a place in the inbox, whatever was marked before
insert into deleted_device as known
       (appservice_id, user_id, device_id, upto, inbox_upto, needed_to)
select g.appservice_id, g.user_id, g.device_id, 0, g.inbox_upto, h.position
  from unnest($1::text[], $2::text[], $3::text[], $4::bigint[])
           as g(appservice_id, user_id, device_id, inbox_upto)
  join outbox_head h using (appservice_id)
on conflict (appservice_id, user_id, device_id) do update
   set inbox_upto = greatest(known.inbox_upto, excluded.inbox_upto),
       needed_to = excluded.needed_to
"""

FORGET_MARKED: Final = """
-- deleted_devices.forget_marked: a mark is done with when everything it speaks of is sealed
delete from deleted_device
 where appservice_id = $1 and upto <= $2 and coalesce(needed_to, 0) <= $2
"""


class DeletedInbox(NamedTuple):
    """What waits for a device and has a place in the homeserver's inbox up to here."""

    appservice_id: str
    user_id: str
    device_id: str
    upto: int


async def mark(conn: Connection, keys: Sequence[DeviceKey]) -> None:
    """Nothing that was routed for these devices so far, and is not sealed, is for anybody."""
    columns = [list(column) for column in zip(*keys, strict=True)]
    await conn.execute(MARK, *columns)


async def mark_inbox(conn: Connection, inboxes: Sequence[DeletedInbox]) -> None:
    """The same of what has a place up to there; what has a later one is for a new device.

    Each device once.
    """
    columns = [list(column) for column in zip(*inboxes, strict=True)]
    await conn.execute(MARK_INBOX, *columns)


async def forget_marked(conn: Connection, appservice_id: str, *, sealed_to: int) -> None:
    """Forget deletions of devices of which nothing waits any more."""
    await conn.execute(FORGET_MARKED, appservice_id, sealed_to)
