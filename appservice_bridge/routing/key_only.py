"""To-device messages of which only the key is kept, where the budget leaves no room for more."""

from collections.abc import Sequence

from appservice_bridge.domain.budget import Budget
from appservice_bridge.storage import inbox
from appservice_bridge.storage.budget import is_used_up, over_budget
from appservice_bridge.storage.capture_log import Captured, CapturedKind
from appservice_bridge.storage.database import (
    Connection,
    SourceUnreadableError,
    reading_synapse,
)
from appservice_bridge.storage.outbox import Routed
from appservice_bridge.storage.repeats import InboxKey


async def with_bodies(
    conn: Connection, rows: Sequence[Captured], *, max_bytes: int
) -> Sequence[Captured]:
    """The rows, with what was left in the homeserver's inbox, now that there is room.

    What finds none, or is not there any more, goes on as a key: the seal looks again, and buries
    what is gone.
    """
    keys = {row.seq: key for row in rows if (key := _key_alone(row)) is not None}
    if not keys or await is_used_up(conn):
        return rows
    try:
        with reading_synapse():
            async with conn.transaction():
                found = await inbox.bodies(conn, list(keys.values()), max_bytes=max_bytes)
    except SourceUnreadableError:
        return rows
    bodies = {seq: body for seq, body in zip(keys, found, strict=False) if body is not None}
    return [row._replace(body=bodies.get(row.seq, row.body)) for row in rows]


def _key_alone(row: Captured) -> InboxKey | None:
    if row.kind != CapturedKind.TO_DEVICE or row.body:
        return None
    if row.user_id is None or row.device_id is None or row.stream_id is None:
        return None
    return InboxKey(row.user_id, row.device_id, row.stream_id)


async def spared(conn: Connection, items: Sequence[Routed], budget: Budget) -> Sequence[Routed]:
    """The items, without payloads that the homeserver holds as well and there is no room for."""
    held = {item.appservice_id for item in items if item.stream_id is not None}
    if not held:
        return items
    limit = budget.appservice_bytes
    full = await over_budget(conn, sorted(held), appservice_bytes=limit)
    return [
        item._replace(payload=b"")
        if item.stream_id is not None and item.appservice_id in full
        else item
        for item in items
    ]
