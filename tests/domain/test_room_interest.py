"""Which room events an appservice is interested in, as Synapse decides it."""

from typing import Any

import pytest

from appservice_bridge.domain.registration import Namespace, Registration
from appservice_bridge.domain.room_interest import (
    Member,
    MembershipChange,
    Room,
    RoomEvent,
    RoomInterest,
)

SERVER = "example.org"
PUPPET = f"@b_1:{SERVER}"
BOT = Registration(
    id="bot",
    url="http://127.0.0.1:9",
    as_token="as",
    hs_token="hs",
    sender_localpart="bot",
    users=(Namespace(regex="@b_.*", exclusive=True),),
    rooms=(Namespace(regex="!mine", exclusive=False),),
    aliases=(Namespace(regex="#mine", exclusive=False),),
    source="test",
)
ALICE = f"@alice:{SERVER}"
LEFT = MembershipChange(stream_ordering=10, joined_before=True, joined_after=False)
CAME = MembershipChange(stream_ordering=10, joined_before=False, joined_after=True)


def event(at: int = 9, *, room: str = "!r", sender: str = ALICE, **more: Any) -> RoomEvent:
    fields: dict[str, Any] = {"type": "m.x", "state_key": None} | more
    return RoomEvent(stream_ordering=at, event_id="$1", room_id=room, sender=sender, **fields)


def inside(user_id: str = PUPPET, *changes: MembershipChange, joined: bool = True) -> Room:
    return Room(members=[Member(user_id=user_id, joined=joined, changes=changes)])


@pytest.mark.parametrize(
    ("what", "room", "wanted"),
    [
        (event(), Room(), False),
        (event(), inside(), True),
        (event(), inside(f"@bot:{SERVER}"), True),
        (event(), inside(ALICE), False),
        (event(), inside(joined=False), False),
        (event(9), inside(PUPPET, LEFT, joined=False), True),
        (event(10), inside(PUPPET, LEFT, joined=False), False),
        (event(9), inside(PUPPET, CAME), False),
        (event(10), inside(PUPPET, CAME), True),
        (event(sender=PUPPET), Room(), True),
        (event(sender="@b_1:elsewhere.org"), Room(), True),
        (event(sender=f"@bot:{SERVER}"), Room(), True),
        (event(type="m.room.member", state_key=PUPPET), Room(), True),
        (event(type="m.x", state_key=PUPPET), Room(), False),
        (event(room="!mine:any"), Room(), True),
        (event(), Room(aliases=["#other:any", "#mine:any"]), True),
        (event(), Room(aliases=["#other:any"]), False),
    ],
)
def test_interest_is_synapse_s(what: RoomEvent, room: Room, wanted: bool) -> None:
    assert RoomInterest(BOT, server_name=SERVER).wants(what, room) is wanted


def test_those_who_were_there_are_asked_first_and_the_sender_last() -> None:
    room = Room(
        members=[
            Member(user_id=ALICE, joined=True),
            Member(user_id="@b_came:example.org", joined=True, changes=[CAME]),
            Member(user_id="@b_left:example.org", joined=False, changes=[LEFT]),
        ]
    )
    kicked = event(type="m.room.member", state_key=PUPPET)
    asked = RoomInterest(BOT, server_name=SERVER).witnesses(kicked, room)
    assert asked == ["@b_left:example.org", PUPPET, "@b_came:example.org", "@bot:example.org"]
