"""What Synapse's own tables hold and the bridge never took: the side that the ledger cannot see."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from appservice_bridge.domain.owners import Owners
from appservice_bridge.domain.room_interest import RoomInterest
from appservice_bridge.sources.event_interest import of_interest
from appservice_bridge.storage import audit, backfill, registrations, room_events
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.repeats import InboxKey

PAGE: Final = 5000
STRETCH: Final = 20_000  # positions of events, in one statement
SLICE: Final = 1000
_END: Final = 2**63 - 1
_REDACTION: Final = "m.room.redaction"

Tell = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Untaken:
    """Messages of the inbox that nobody took yet; the trigger's or the reconciler's work.

    Attributes:
        keys: of owned users and devices that exist, above the floor.
        floor: up to there the reconciler compared, and what was taken is not remembered; None:
            nothing was compared, and nothing is known.
        unattached: appservices of which it is not known since when they are attached.
    """

    keys: frozenset[InboxKey] = frozenset()
    floor: int | None = None
    unattached: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class MissingEvents:
    """Room events that were for an appservice and never came.

    Attributes:
        missing: by appservice.
        withheld: redactions among those that never came: Synapse keeps those back whose event it
            does not have, and nobody can tell which.
        unknown: why some were not compared.
        failed: why others were not, though they should have been.
    """

    missing: Counter[str] = field(default_factory=Counter)
    withheld: int = 0
    unknown: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


async def untaken(conn: Connection, owners: Owners, tell: Tell) -> Untaken:
    """One look at the whole inbox above the floor, all of it of one moment."""
    async with audit.snapshot(conn):
        floor = await audit.floor(conn)
        attached = await registrations.attached(conn)
        unattached = tuple(id_ for id_ in owners.encrypted if id_ not in attached)
        if floor is None or len(unattached) == len(owners.encrypted):
            return Untaken(unattached=unattached)
        after = max(floor, min(attached[id_] for id_ in owners.encrypted if id_ in attached))
        keys: set[InboxKey] = set()
        while page := await backfill.page(conn, after=after, upto=_END, size=PAGE):
            bounds = _bounds(page.user_ids, owners, attached)
            keys.update(await audit.untaken(conn, after=after, upto=page.upto, bounds=bounds))
            after = page.upto
            tell(f"the inbox is compared up to position {after}")
    return Untaken(keys=frozenset(keys), floor=floor, unattached=unattached)


def _bounds(
    user_ids: frozenset[str], owners: Owners, attached: Mapping[str, int]
) -> dict[str, int]:
    """Owned users, and above which position what is for them is captured."""
    since = {
        user_id: [attached[id_] for id_ in owners.of(user_id) if id_ in attached]
        for user_id in user_ids
    }
    return {user_id: min(positions) for user_id, positions in since.items() if positions}


async def missing_events(
    conn: Connection, owners: Owners, *, since_seconds: float, tell: Tell
) -> MissingEvents:
    """Events of the last so many seconds, behind what is compared: by then all of them came."""
    found = MissingEvents()
    if not await room_events.readable(conn):
        found.failed.append("room events: some table cannot be read; see install --print-grants")
        return found
    if await room_events.log_is_long(conn):
        found.failed.append("room events: too many facts are not routed yet; try again later")
        return found
    compared = await audit.compared(conn)
    since_ms = int((time.time() - since_seconds) * 1000)
    for id_, registration in owners.registrations.items():
        if id_ not in compared:
            found.unknown.append(f"room events of {id_}: the homeserver has sent none yet")
            continue
        began, settled = compared[id_]
        low = await audit.first_received_since(conn, since_ms=since_ms, low=began, high=settled)
        interest = RoomInterest(registration, server_name=owners.server_name)
        for after in range(max(began, low - 1), settled, STRETCH):
            to = min(after + STRETCH, settled)
            await _compare(conn, id_, interest, after=after, to=to, found=found)
            tell(f"room events of {id_} are compared up to position {to}")
    return found


async def _compare(
    conn: Connection,
    appservice_id: str,
    interest: RoomInterest,
    *,
    after: int,
    to: int,
    found: MissingEvents,
) -> None:
    while after < to:
        async with audit.snapshot(conn):
            unseen = await room_events.unseen(conn, appservice_id, after=after, to=to, limit=SLICE)
            events = (await of_interest(conn, appservice_id, interest, unseen)).events
            ids = [event.event_id for event in events]
            known = await audit.accounted_for(conn, appservice_id, ids) if ids else frozenset()
        for event in events:
            if event.type == _REDACTION:
                found.withheld += 1
            elif event.event_id not in known:
                found.missing[appservice_id] += 1
        after = to if len(unseen) < SLICE else unseen[-1].stream_ordering
