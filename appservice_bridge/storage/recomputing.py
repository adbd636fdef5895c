"""What the triggers did not write is put into the log again, as far as it is state."""

from typing import Final

from appservice_bridge.storage.database import Connection

APPEND_DEVICES: Final = """
-- recomputing.append_devices: of those who went, too, so that they are forgotten
insert into capture_log (kind, user_id, device_id)
select 'device_keys', d.user_id, d.device_id
  from (select d.user_id, d.device_id from public.devices d
         where not coalesce(d.hidden, false)
           and not exists (select from foreign_user f where f.user_id = d.user_id)
        union
        select k.user_id, k.device_id from device_key_state k) d
 order by d.user_id, d.device_id
"""

APPEND_USERS: Final = """
-- recomputing.append_users: our own, and whom an appservice was told about
insert into capture_log (kind, user_id)
select 'device_list', u.user_id
  from (select d.user_id from public.devices d
         where not exists (select from foreign_user f where f.user_id = d.user_id)
        union
        select t.user_id from tracked t) u
 order by u.user_id
"""


async def append_devices(conn: Connection) -> None:
    """Have the keys of every device counted again that may be an appservice's."""
    await conn.execute(APPEND_DEVICES)


async def append_users(conn: Connection) -> None:
    """Have every user whose devices an appservice follows told as `changed`."""
    await conn.execute(APPEND_USERS)
