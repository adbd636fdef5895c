"""The devices of the homeserver's users, and what keys they have left."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from appservice_bridge.storage.database import Connection

KEYS_LEFT: Final = """
-- devices.keys_left: hidden devices are those of cross-signing
select u.name as user_id, d.device_id,
       (select count(*) from public.e2e_one_time_keys_json k
         where k.user_id = d.user_id and k.device_id = d.device_id
           and k.algorithm = 'signed_curve25519') as one_time_keys,
       exists (select from public.e2e_fallback_keys_json f
                where f.user_id = d.user_id and f.device_id = d.device_id) as fallback
  from unnest($1::text[]) as u(name)
  left join public.devices d on d.user_id = u.name and not coalesce(d.hidden, false)
 order by 1, 2
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSeen:
    """One device, or a user without any.

    Attributes:
        device_id: None: the user has none.
        one_time_keys: signed_curve25519 keys that nobody claimed.
        fallback: whether it has a fallback key, used or not.
    """

    user_id: str
    device_id: str | None
    one_time_keys: int
    fallback: bool


async def keys_left(conn: Connection, user_ids: Sequence[str]) -> list[DeviceSeen]:
    """Every device of these users, and those of them that have none."""
    return [DeviceSeen(**row) for row in await conn.fetch(KEYS_LEFT, user_ids)]
