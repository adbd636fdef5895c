"""What a transaction was to tell of devices when it ended without an ack."""

from dataclasses import dataclass
from typing import Final

from appservice_bridge.storage.database import Connection

LISTS_WAIT: Final = """
-- untold.lists_wait
with untold as materialized (
    select user_id from device_list_update
     where appservice_id = $1 and sealed_in = $2 order by user_id for update
)
update device_list_update u set sealed_in = null from untold t
 where u.appservice_id = $1 and u.user_id = t.user_id
"""

KEYS_WAIT: Final = """
-- untold.keys_wait
with untold as materialized (
    select user_id, device_id from device_key_state
     where appservice_id = $1 and sealed_in = $2 order by user_id, device_id for update
)
update device_key_state k set sealed_in = null, waiting = true from untold t
 where k.appservice_id = $1 and k.user_id = t.user_id and k.device_id = t.device_id
"""

DROP_LISTS: Final = """
-- untold.drop_lists: what changed since it was sealed waits for another transaction
delete from device_list_update where appservice_id = $1 and sealed_in = $2 returning user_id
"""

DROP_KEYS: Final = """
-- untold.drop_keys: told of no more until its keys change, as those that wait did already
update device_key_state set sealed_in = null
 where appservice_id = $1 and sealed_in = $2
returning user_id, device_id, waiting
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Untold:
    """A user whose devices, or a device whose keys, the appservice does not hear of."""

    kind: str
    user_id: str
    device_id: str | None = None


async def wait_again(conn: Connection, appservice_id: str, *, number: int) -> None:
    """What was sealed in this transaction goes into another.

    Lists are locked before keys, each in order, as intake does.
    """
    await conn.execute(LISTS_WAIT, appservice_id, number)
    await conn.execute(KEYS_WAIT, appservice_id, number)


async def drop(conn: Connection, appservice_id: str, *, number: int) -> list[Untold]:
    """What was sealed in this transaction is not told, unless it changed and waits again."""
    lists = await conn.fetch(DROP_LISTS, appservice_id, number)
    keys = await conn.fetch(DROP_KEYS, appservice_id, number)
    return [
        *(Untold(kind="device_list", user_id=row["user_id"]) for row in lists),
        *(
            Untold(kind="device_keys", user_id=row["user_id"], device_id=row["device_id"])
            for row in keys
            if not row["waiting"]
        ),
    ]
