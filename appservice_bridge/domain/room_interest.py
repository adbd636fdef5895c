"""Which room events Synapse sends to an appservice, and which of its users may have seen them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from appservice_bridge.domain.registration import Registration

MEMBER: Final = "m.room.member"
MOST_WITNESSES: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomEvent:
    """What decides who hears of an event; of its content nothing.

    Attributes:
        stream_ordering: the homeserver's own position of it.
        state_key: None unless it is a state event.
    """

    stream_ordering: int
    event_id: str
    room_id: str
    type: str
    sender: str
    state_key: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipChange:
    """A change of the room's state that a user's membership was part of."""

    stream_ordering: int
    joined_before: bool
    joined_after: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A local user who is or was in a room.

    Attributes:
        joined: as it is now.
        changes: the latest, ascending; they reach back as far as anyone asks.
    """

    user_id: str
    joined: bool
    changes: Sequence[MembershipChange] = ()

    def joined_at(self, stream_ordering: int) -> bool:
        """Whether the user was in the room when that position was reached."""
        for change in reversed(self.changes):
            if change.stream_ordering <= stream_ordering:
                return change.joined_after
        return self.changes[0].joined_before if self.changes else self.joined


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What of a room decides who hears of its events: local users and aliases."""

    members: Sequence[Member] = ()
    aliases: Sequence[str] = ()


class RoomInterest:
    """One appservice's interest in room events, decided as Synapse's `is_interested_in_event` does.

    One thing differs: Synapse looks for users in the room at the moment when it comes to the event,
    and here it is the moment of the event. So who left right after an event still hears of it.
    """

    def __init__(self, registration: Registration, *, server_name: str) -> None:
        self._registration = registration
        self._server_name = server_name
        self._sender = registration.sender(server_name=server_name)

    def wants(self, event: RoomEvent, room: Room) -> bool:
        """Whether Synapse sends this event to the appservice."""
        if self._is_ours(event.sender):
            return True
        if event.type == MEMBER and self._is_ours(event.state_key or ""):
            return True
        registration = self._registration
        if any(namespace.matches(event.room_id) for namespace in registration.rooms):
            return True
        if any(space.matches(alias) for space in registration.aliases for alias in room.aliases):
            return True
        at = event.stream_ordering
        return any(m.joined_at(at) and self._is_ours(m.user_id) for m in room.members)

    def is_own_membership(self, event: RoomEvent) -> bool:
        """Whether it says something about a local user of the appservice."""
        return event.type == MEMBER and self._owns(event.state_key or "")

    def witnesses(self, event: RoomEvent, room: Room) -> list[str]:
        """Local users of the appservice who may read the event, the likeliest first.

        Those who were in the room, the one whose membership it is, the one who sent it, those who
        are in the room now, and at last the sender of the registration: the room may be open.
        """
        owned = [member for member in room.members if self._owns(member.user_id)]
        users = [m.user_id for m in owned if m.joined_at(event.stream_ordering)]
        users = users[:MOST_WITNESSES]
        named = [event.state_key or "", event.sender] if event.type == MEMBER else [event.sender]
        users += [user for user in named if self._owns(user)]
        users += [m.user_id for m in owned if m.joined][:MOST_WITNESSES]
        return list(dict.fromkeys([*users, self._sender]))

    def _owns(self, user_id: str) -> bool:
        return self._registration.owns(user_id, server_name=self._server_name)

    def _is_ours(self, user_id: str) -> bool:
        """As Synapse asks it: of any server, for a namespace need not name one."""
        return user_id == self._sender or any(
            namespace.matches(user_id) for namespace in self._registration.users
        )
