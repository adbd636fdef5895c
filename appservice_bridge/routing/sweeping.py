"""What is kept of memberships held against what holds now, a page at a time.

A room that is purged while this server's users are in it goes without a change of membership, so
following does not hear of it.
"""

from dataclasses import dataclass, field
from typing import Final

from appservice_bridge.domain.owners import Owners
from appservice_bridge.routing.following import decide
from appservice_bridge.storage import (
    capture_log,
    device_updates,
    membership_stream,
    notifications,
    tracking,
)
from appservice_bridge.storage.database import Connection, Database
from appservice_bridge.storage.device_updates import ListKey
from appservice_bridge.storage.membership_stream import Delta
from appservice_bridge.storage.tracking import Resident

PAGE: Final = 2000  # of residents, and of tracked users
FIRST_RESIDENT: Final = Resident("", "", "")
FIRST_TRACKED: Final = ListKey("", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """Up to where it was swept; the next sweep goes on from there, and at the end begins again.

    Attributes:
        told: the appservices that have something new to hear.
    """

    resident: Resident = FIRST_RESIDENT
    tracked: ListKey = FIRST_TRACKED
    told: frozenset[str] = field(default=frozenset())


async def sweep_once(
    database: Database, owners: Owners, before: Swept, *, size: int = PAGE
) -> Swept:
    """Look at the next page, unless another worker follows or there are changes to follow first.

    Dying anywhere leaves everything as it was: it is one DB transaction.

    Raises:
        DatabaseUnavailableError: nothing was swept, or the commit's answer was lost.
        SourceUnreadableError: Synapse's tables are not as they were.
    """
    async with database.beside_synapse() as conn:
        if not await _is_due(conn, owners):
            return Swept(resident=before.resident, tracked=before.tracked)
        residents = await tracking.residents_page(conn, after=before.resident, size=size)
        tracked = await tracking.tracked_page(conn, after=before.tracked, size=size)
        changes = await _left_behind(conn, owners, residents)
        changes |= dict.fromkeys(await tracking.untrack(conn, tracked), "left")
        if changes:
            await device_updates.change_lists(conn, changes)
            await notifications.notify(conn, notifications.OUTBOX)
    return Swept(
        resident=residents[-1] if len(residents) == size else FIRST_RESIDENT,
        tracked=tracked[-1] if len(tracked) == size else FIRST_TRACKED,
        told=frozenset(pair.appservice_id for pair in changes),
    )


async def _is_due(conn: Connection, owners: Owners) -> bool:
    """Whether nobody else follows, and nothing waits to be followed."""
    cursor = await membership_stream.hold_cursor(conn)
    if cursor is None or not await capture_log.same_registrations(conn, owners.digest()):
        return False
    return not (await membership_stream.read(conn, cursor, limit=1)).rows


async def _left_behind(
    conn: Connection, owners: Owners, residents: list[Resident]
) -> dict[ListKey, str]:
    """Take the leave of residents who are joined no more, as if the homeserver had told of it."""
    members = {(room_id, user_id) for _, room_id, user_id in residents}
    gone = members - await membership_stream.joined(conn, members) if members else set()
    deltas = [
        Delta(stream_id=0, room_id=room_id, user_id=user_id, was_joined=True)
        for room_id, user_id in sorted(gone)
    ]
    return await decide(conn, owners, deltas) if deltas else {}
