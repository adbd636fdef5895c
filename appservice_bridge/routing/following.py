"""What a change of membership means for those who track: who `changed`, and who `left`."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from appservice_bridge.domain.owners import Owners
from appservice_bridge.storage import (
    capture_log,
    device_updates,
    membership_stream,
    notifications,
    registrations,
    tracking,
)
from appservice_bridge.storage.database import Connection, Database
from appservice_bridge.storage.device_updates import ListKey
from appservice_bridge.storage.membership_stream import SETTLE_SECONDS, Delta
from appservice_bridge.storage.tracking import Occupied, Resident

BATCH: Final = 1000

# Rooms and their members.
Members = set[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What one pass did.

    Attributes:
        told: the appservices that have something new to hear.
        done: nothing that was there to read is left.
    """

    told: frozenset[str] = frozenset()
    done: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What holds now of the members that a batch names.

    Attributes:
        entered: of them, who was not joined before one of the changes.
        joined: of them, who is joined now.
        before: the rooms that had a resident when the batch began.
        now: those that have one now.
    """

    members: Members
    entered: Members
    joined: Members
    before: set[Occupied]
    now: set[Occupied]


async def begin_following(database: Database) -> None:
    """Follow memberships from now on; who was live before that was not told of anyone yet.

    Dying before the commit changes nothing; after it, the next start finds all of them not live.

    Raises:
        SourceUnreadableError: Synapse's tables are not as they were.
    """
    async with database.beside_synapse() as conn:
        if await membership_stream.create_cursor(conn):
            await registrations.begin_anew(conn)


async def follow_once(
    database: Database,
    owners: Owners,
    *,
    limit: int = BATCH,
    settle_seconds: float = SETTLE_SECONDS,
) -> Followed:
    """Follow the next changes of membership, unless another worker does or has other registrations.

    Dying anywhere leaves everything as it was: it is one DB transaction. Every change is decided
    by what holds now, so that one that comes late, or twice, does no harm.

    Raises:
        DatabaseUnavailableError: nothing was followed, or the commit's answer was lost.
        SourceUnreadableError: Synapse's tables are not as they were.
    """
    async with database.beside_synapse() as conn:
        cursor = await membership_stream.hold_cursor(conn, settle_seconds=settle_seconds)
        if cursor is None or not await capture_log.same_registrations(conn, owners.digest()):
            return Followed()
        deltas = await membership_stream.read(conn, cursor, limit=limit)
        changes = await decide(conn, owners, deltas.rows) if deltas.rows else {}
        if changes:
            await device_updates.change_lists(conn, changes)
            await notifications.notify(conn, notifications.OUTBOX)
        await membership_stream.move_cursor(conn, cursor, deltas)
    told = frozenset(pair.appservice_id for pair in changes)
    return Followed(told=told, done=deltas.whole)


async def decide(conn: Connection, owners: Owners, rows: Iterable[Delta]) -> dict[ListKey, str]:
    """Move residents and tracked users to what holds now; returns who must hear of whom.

    All of tracked is written before anything that appservices hear of: intake locks in that
    order, too.
    """
    looked = await _look(conn, owners, rows)
    vacated, opened = looked.before - looked.now, looked.now - looked.before
    told = await tracking.tracked_among(conn, {user_id for _, user_id in looked.members})
    arrived = _arrived(owners, looked, told)
    arrived |= foreign_to(owners, await tracking.members(conn, opened, tracked=False))
    await tracking.track(conn, arrived)
    away = {user_id for _, user_id in looked.members - looked.joined}
    candidates = {pair for pair in told if pair.user_id in away}
    candidates |= await tracking.members(conn, vacated, tracked=True)
    left = await tracking.untrack(conn, candidates)
    changes: dict[ListKey, str] = dict.fromkeys(arrived, "changed")
    return changes | dict.fromkeys(left, "left")


async def _look(conn: Connection, owners: Owners, rows: Iterable[Delta]) -> Looked:
    """Read what holds now, and move the residents to it."""
    entered = {(row.room_id, row.user_id) for row in rows if not row.was_joined}
    members = entered | {(row.room_id, row.user_id) for row in rows}
    joined = await membership_stream.joined(conn, members)
    rooms = {room_id for room_id, _ in members}
    before = await tracking.occupied(conn, owners.encrypted, rooms)
    come, gone = _residents(owners, joined), _residents(owners, members - joined)
    await tracking.move_residents(conn, come=come, gone=gone)
    moved = bool(come or gone)
    now = await tracking.occupied(conn, owners.encrypted, rooms) if moved else before
    return Looked(members=members, entered=entered, joined=joined, before=before, now=now)


def _residents(owners: Owners, members: Members) -> list[Resident]:
    return [
        Resident(appservice_id, room_id, user_id)
        for room_id, user_id in members
        for appservice_id in owners.of(user_id)
    ]


def _arrived(owners: Owners, looked: Looked, told: set[ListKey]) -> set[ListKey]:
    """Who is joined beside a resident, and was not before or was never told of."""
    beside: dict[str, list[str]] = {}
    for appservice_id, room_id in looked.now:
        beside.setdefault(room_id, []).append(appservice_id)
    arrived = {
        ListKey(appservice_id, user_id)
        for room_id, user_id in looked.joined
        for appservice_id in beside.get(room_id, ())
        if (room_id, user_id) in looked.entered or (appservice_id, user_id) not in told
    }
    return foreign_to(owners, arrived)


def foreign_to(owners: Owners, pairs: Iterable[ListKey]) -> set[ListKey]:
    """Those users that are not the appservice's own."""
    return {pair for pair in pairs if pair.appservice_id not in owners.of(pair.user_id)}
