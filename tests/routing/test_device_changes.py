"""What intake makes of facts about devices: whose lists change, whose keys, and what is dropped."""

import json

import pytest

from appservice_bridge.routing.announcing import announce, go_live
from appservice_bridge.routing.intake import Intake
from appservice_bridge.storage.database import Database
from tests.support.facts import Connection, capture, outbox
from tests.support.intake import nobody, registered

BOT = "@b_1:example.org"
FRIEND = "@friend:elsewhere.org"
LISTS = (
    "select appservice_id, user_id, change from appservice_bridge.device_list_update"
    " where sealed_in is null order by 1, 2"
)
KEYS = (
    "select appservice_id, user_id, device_id, recount, counts, fallback_types"
    " from appservice_bridge.device_key_state where waiting order by 1, 2, 3"
)


async def captured(pg: Connection, kind: str, **columns: object) -> None:
    """A row of the log of any kind."""
    names = ["kind", *columns]
    values = [kind, *columns.values()]
    places = ", ".join(f"${place}" for place in range(1, len(names) + 1))
    await pg.execute(
        f"insert into appservice_bridge.capture_log ({', '.join(names)}) values ({places})", *values
    )


async def rows(pg: Connection, statement: str) -> list[tuple[object, ...]]:
    return [tuple(row) for row in await pg.fetch(statement)]


async def two_appservices(db: Database) -> Intake:
    owners = registered(("bot", "@b_.*"), ("irc", "@i_.*"))
    await go_live(db, await announce(db, owners, epoch="test"))
    return Intake(db, owners, nobody)


async def test_a_change_concerns_those_that_own_the_user_and_those_that_track_them(
    pg: Connection, db: Database
) -> None:
    intake = await two_appservices(db)
    await pg.execute("insert into appservice_bridge.tracked values ('irc', $1)", FRIEND)
    await pg.execute("insert into appservice_bridge.tracked values ('irc', $1)", BOT)
    for stream_id, user in enumerate([FRIEND, BOT, "@stranger:example.org"], 1):
        await captured(pg, "device_list", user_id=user, device_id="D", stream_id=stream_id)
    assert (await intake.consume_once()).appended.keys() == {"bot", "irc"}
    assert await rows(pg, LISTS) == [
        ("bot", BOT, "changed"),
        ("irc", BOT, "changed"),
        ("irc", FRIEND, "changed"),
    ]
    assert await rows(pg, KEYS) == [("bot", BOT, "D", True, None, None)]
    assert await rows(pg, "select * from appservice_bridge.foreign_user") == []


async def test_a_change_that_is_read_twice_is_told_once(pg: Connection, intake: Intake) -> None:
    for _ in range(2):
        await captured(pg, "device_list", user_id=BOT, device_id="D", stream_id=7)
        await intake.consume_once()
        await pg.execute("delete from appservice_bridge.device_list_update where user_id <> ''")
    await captured(pg, "device_list", user_id=BOT, device_id="D", stream_id=8)
    await intake.consume_once()
    assert await rows(pg, LISTS) == [("bot", BOT, "changed")]
    await pg.execute("delete from appservice_bridge.device_list_update")
    await captured(pg, "device_list", user_id=BOT, device_id="D", stream_id=7)
    assert (await intake.consume_once()).appended == {}
    assert await rows(pg, LISTS) == []


async def test_signatures_that_are_read_twice_are_told_once(pg: Connection, intake: Intake) -> None:
    body = json.dumps([FRIEND]).encode()
    await pg.execute("insert into appservice_bridge.tracked values ('bot', $1)", FRIEND)
    for stream_id, wanted in ((7, 1), (7, 0), (8, 1)):
        await captured(pg, "signatures", user_id=BOT, stream_id=stream_id, body=body)
        await intake.consume_once()
        assert len(await rows(pg, LISTS)) == wanted
        await pg.execute("delete from appservice_bridge.device_list_update")


async def test_signatures_that_cannot_be_read_are_buried_once(
    pg: Connection, intake: Intake
) -> None:
    await captured(pg, "signatures", user_id=BOT, stream_id=7, body=b"{")
    await intake.consume_once()
    assert await rows(pg, "select stream_id from appservice_bridge.taken_device_change") == [(7,)]
    assert await rows(pg, "select kind from appservice_bridge.dead_letter") == [("signatures",)]


async def test_who_signed_keys_of_others_hears_of_them_while_it_tracks_them(
    pg: Connection, intake: Intake
) -> None:
    for user in (FRIEND, "@é:example.org"):
        await pg.execute("insert into appservice_bridge.tracked values ('bot', $1)", user)
    body = json.dumps([FRIEND, "@é:example.org", "@gone:example.org", BOT]).encode()
    left = "insert into appservice_bridge.device_list_update values ('bot', $1, 'left')"
    await pg.execute(left, "@gone:example.org")
    await captured(pg, "signatures", user_id=BOT, stream_id=1, body=body)
    await captured(pg, "signatures", user_id="@none:example.org", stream_id=2, body=body)
    await intake.consume_once()
    assert await rows(pg, LISTS) == [
        ("bot", BOT, "changed"),
        ("bot", FRIEND, "changed"),
        ("bot", "@gone:example.org", "left"),  # and no signature makes it come back
        ("bot", "@é:example.org", "changed"),
    ]


async def test_a_homeserver_may_say_itself_who_changed_and_what_was_counted(
    pg: Connection, intake: Intake
) -> None:
    said = {"appservice_id": "bot", "user_id": FRIEND}
    await captured(pg, "device_list", **said, body=b"changed")
    await captured(pg, "device_list", **said, body=b"left")
    await captured(pg, "device_list", appservice_id="unknown", user_id=FRIEND, body=b"left")
    await captured(pg, "device_list", **said | {"user_id": BOT}, body=b"gone away")
    counts = b'{"one_time_key_counts": {"signed_curve25519": 5}}'
    types = b'{"unused_fallback_key_types": ["signed_curve25519"]}'
    for body in (counts, types):
        await captured(pg, "device_keys", user_id=BOT, device_id="D", body=body)
    await intake.consume_once()
    assert await rows(pg, LISTS) == [("bot", FRIEND, "left")]
    assert await rows(pg, KEYS) == [
        ("bot", BOT, "D", False, b'{"signed_curve25519": 5}', b'["signed_curve25519"]')
    ]
    reasons = await rows(pg, "select kind, reason from appservice_bridge.dead_letter")
    assert reasons == [("device_list", "a device list update is changed or left")]


@pytest.mark.parametrize(
    "body",
    [
        b"7",
        b'{"one_time_key_counts": []}',
        b'{"one_time_key_counts": {"a": 1.5}}',
        b'{"one_time_key_counts": {"a": "1"}}',
        b'{"one_time_key_counts": {"a": 99999999999999999999}}',
        b'{"unused_fallback_key_types": [1]}',
        b'{"unused_fallback_key_types": null}',
    ],
)
async def test_what_is_no_count_is_buried_and_its_neighbours_go_on(
    pg: Connection, intake: Intake, body: bytes
) -> None:
    await captured(pg, "device_keys", user_id=BOT, device_id="D", body=body)
    await capture(pg, BOT, 1)
    await intake.consume_once()
    assert await rows(pg, KEYS) == []
    assert await outbox(pg) == [1]
    assert await pg.fetchval("select count(*) from appservice_bridge.dead_letter") == 1


async def test_an_event_for_one_appservice_comes_once(pg: Connection, intake: Intake) -> None:
    for kind, body in (("event", b'{"event_id":"$1"}'), ("ephemeral", b'{"content":{"n":2}}')):
        for _ in range(2):
            await captured(pg, kind, appservice_id="bot", body=body)
    await captured(pg, "event", appservice_id="bot", body=b"[]")
    await intake.consume_once()
    assert await outbox(pg) == ["$1", 2, 2]
    assert await pg.fetchval("select count(*) from appservice_bridge.dead_letter") == 1


@pytest.mark.parametrize("together", [True, False])
async def test_case_27_a_deleted_device_gets_nothing_that_came_before_and_all_that_comes_after(
    pg: Connection, intake: Intake, together: bool
) -> None:
    async def step() -> None:
        if not together:
            await intake.consume_once()

    await capture(pg, BOT, 1)
    await capture(pg, "@b_2:example.org", 2)
    await step()
    await captured(pg, "device_keys", user_id=BOT, device_id="DEV")
    await captured(pg, "device_deleted", user_id=BOT, device_id="DEV")
    await step()
    await capture(pg, BOT, 3)
    await intake.consume_once()
    marks = await rows(pg, "select user_id, device_id, upto from appservice_bridge.deleted_device")
    assert marks == [(BOT, "DEV", 0 if together else 2)]
    assert await outbox(pg) == ([2, 3] if together else [1, 2, 3])  # 1 is emptied at the seal
    assert await rows(pg, KEYS) == []


@pytest.mark.parametrize("together", [True, False])
async def test_case_27_an_inbox_deleted_up_to_there_leaves_the_new_device_all_that_is_its_own(
    pg: Connection, intake: Intake, together: bool
) -> None:
    """Also what was routed before it was known that the device is another one; and its keys."""

    async def step() -> None:
        if not together:
            await intake.consume_once()

    for n in (1, 3, 4):
        await capture(pg, BOT, n)
    await capture(pg, "@b_2:example.org", 2)
    await captured(pg, "device_keys", user_id=BOT, device_id="DEV")
    await step()
    for upto in (3, 2):  # the one that reaches less far takes nothing back
        await captured(pg, "inbox_deleted", user_id=BOT, device_id="DEV", stream_id=upto)
        await step()
    await capture(pg, BOT, 5)
    await intake.consume_once()
    marks = "select user_id, upto, inbox_upto, needed_to from appservice_bridge.deleted_device"
    assert await rows(pg, marks) == [(BOT, 0, 3, 0 if together else 4)]
    assert await outbox(pg) == ([4, 2, 5] if together else [1, 3, 4, 2, 5])  # emptied at the seal
    assert await rows(pg, KEYS) == [("bot", BOT, "DEV", True, None, None)]


async def test_case_27_a_letter_for_a_device_that_was_another_one_cannot_be_redriven(
    pg: Connection, intake: Intake
) -> None:
    await pg.execute(
        "insert into appservice_bridge.dead_letter"
        " (appservice_id, kind, reason, user_id, device_id, stream_id, redrivable)"
        " select 'bot', 'to_device', 'refused', $1, 'DEV', n, true from generate_series(1, 2) n",
        BOT,
    )
    await captured(pg, "inbox_deleted", user_id=BOT, device_id="DEV", stream_id=1)
    await intake.consume_once()
    letters = "select stream_id, redrivable from appservice_bridge.dead_letter order by 1"
    assert await rows(pg, letters) == [(1, False), (2, True)]
