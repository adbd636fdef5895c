"""Which of Synapse's room events that never came were for an appservice."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from appservice_bridge.domain.room_interest import Room, RoomEvent, RoomInterest
from appservice_bridge.storage import room_events
from appservice_bridge.storage.database import Connection


class OfInterest(NamedTuple):
    """Events that Synapse sends to an appservice, ascending, and the rooms they happened in."""

    events: Sequence[RoomEvent]
    rooms: Mapping[str, Room]


async def of_interest(
    conn: Connection, appservice_id: str, interest: RoomInterest, unseen: Sequence[RoomEvent]
) -> OfInterest:
    """Those of a slice that the appservice should have; not those that wait in the log."""
    rooms: Mapping[str, Room] = {}
    if unseen:
        room_ids = sorted({event.room_id for event in unseen})
        after = unseen[0].stream_ordering - 1
        rooms = await room_events.rooms(conn, room_ids, after=after)
    events = [event for event in unseen if interest.wants(event, rooms[event.room_id])]
    if events:
        ids = [event.event_id for event in events]
        came = await room_events.waiting_in_log(conn, appservice_id, ids)
        events = [event for event in events if event.event_id not in came]
    return OfInterest(events, rooms)
