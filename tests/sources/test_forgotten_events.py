"""What Synapse committed is compared with what came; only what it cannot hold is recovered."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest

from appservice_bridge.routing.intake import Intake
from appservice_bridge.sources.event_reader import HomeserverAwayError
from appservice_bridge.storage import capture_log, room_events
from appservice_bridge.storage.database import Database, RefusedRowError
from tests.support.facts import Connection
from tests.support.forgotten import PUPPET, Lab, Shown, homeserver_that_shows, one_room, store
from tests.support.intake import registered


@pytest.fixture
async def shown() -> AsyncIterator[Shown]:
    async with homeserver_that_shows() as one:
        yield one


@pytest.fixture
async def lab(pg: Connection, db: Database, intake: Intake, shown: Shown) -> AsyncIterator[Lab]:
    async with one_room(pg, db, intake, shown) as one:
        yield one


async def test_what_synapse_forgot_is_recovered_once_and_in_its_order(lab: Lab) -> None:
    for at in (4, 2, 3):
        await lab.say(at)
    await lab.reach(4)
    assert await lab.finder().look_once() == 3
    assert await lab.finder().look_once() == 0
    assert await lab.got() == ["$1", "$2", "$3", "$4"]
    assert (await lab.counted("recovered"), await lab.cursor()) == (3, 4)
    assert set(lab.shown.asked) == {PUPPET}


async def test_what_is_of_the_reader_is_not_passed_on(lab: Lab) -> None:
    await lab.say(2)
    await lab.reach(2)
    await lab.finder().look_once()
    await lab.got()
    payload = await lab.pg.fetchval(
        "select payload from appservice_bridge.outbox order by position desc limit 1"
    )
    assert json.loads(payload)["unsigned"] == {"age": 1}


async def test_what_synapse_has_not_come_to_is_its_own_to_send(lab: Lab) -> None:
    await lab.say(2)
    assert await lab.finder(quiet=60).look_once() == 0
    assert (await lab.got(), await lab.cursor()) == (["$1"], 1)


async def test_what_synapse_never_comes_to_is_recovered_and_its_copy_is_a_repeat(lab: Lab) -> None:
    await lab.say(2)
    finder = lab.finder()
    assert await finder.look_once() == 1
    assert await lab.cursor() == 1
    assert await finder.look_once() == 0
    await lab.relayed("$2")
    assert await lab.got() == ["$1", "$2"]
    assert await lab.counted("repeated") == 1


@pytest.mark.parametrize("position", [1, 4])
async def test_what_there_is_no_room_for_stays_in_synapse(lab: Lab, position: int) -> None:
    for at in range(2, 5):
        await lab.say(at)
    await lab.relayed("$2")
    await lab.reach(position)
    await lab.pg.execute("update appservice_bridge.capture_watch set keys_only = true")
    finder = lab.finder()
    assert await finder.look_once() == 0
    assert (await lab.cursor(), lab.shown.asked) == (min(position, 2), [])
    await lab.pg.execute("update appservice_bridge.capture_watch set keys_only = false")
    assert await finder.look_once() == 2
    assert await lab.got() == ["$1", "$2", "$3", "$4"]


@pytest.fixture
async def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Sets the clock of this process two minutes ahead."""
    loop, ahead = asyncio.get_running_loop(), 0
    now = loop.time

    def set_ahead() -> None:
        nonlocal ahead
        ahead += 120

    monkeypatch.setattr(loop, "time", lambda: now() + ahead)
    return set_ahead


async def test_nothing_is_recovered_before_it_was_quiet_for_a_while(
    lab: Lab, later: Callable[[], None]
) -> None:
    await lab.say(2)
    await lab.reach(2)
    finder = lab.finder(quiet=60)
    assert await finder.look_once() == 0
    later()
    await lab.pg.execute("update appservice_bridge.relayed set received_at = clock_timestamp()")
    assert await finder.look_once() == 0  # it is sending
    await lab.pg.execute(
        "update appservice_bridge.relayed set received_at = now() - interval '1 hour'"
    )
    assert await finder.look_once() == 1


@pytest.mark.parametrize(("every_seconds", "recovered"), [(1, 0), (60, 1)])
async def test_who_was_frozen_did_not_see_whether_synapse_sent_and_waits_anew(
    lab: Lab,
    later: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    every_seconds: float,
    recovered: int,
) -> None:
    """Two minutes are a freeze for who looks every second."""
    await lab.say(2)
    await lab.reach(2)
    finder, stop, found = lab.finder(quiet=60), asyncio.Event(), list[int]()
    look = finder.look_once

    async def noted() -> int:
        found.append(await look())
        return found[-1]

    async def looked(times: int) -> None:
        async with asyncio.timeout(240):  # of a clock that is set ahead
            while len(found) < times:
                await asyncio.sleep(0.01)

    monkeypatch.setattr(finder, "look_once", noted)
    running = asyncio.create_task(finder.run(stop, every_seconds=every_seconds))
    await looked(1)
    later()
    await looked(2)
    stop.set()
    await running
    assert found == [0, recovered]


async def test_who_finds_the_cursor_moved_waits_anew(lab: Lab, later: Callable[[], None]) -> None:
    await lab.say(2, days_ago=40)
    await lab.say(3)
    await lab.reach(3)
    finder = lab.finder(quiet=60)
    assert await finder.look_once() == 0
    later()
    assert (await finder.look_once(), await lab.cursor()) == (0, 2)  # past what is too old
    assert await finder.look_once() == 0
    later()
    assert await finder.look_once() == 1
    assert await lab.got() == ["$1", "$3"]


async def test_what_is_not_overtaken_while_much_comes_is_recovered_at_last(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.say(2)
    await lab.reach(2)
    await lab.pg.execute("update appservice_bridge.relayed set received_at = clock_timestamp()")
    finder = lab.finder(quiet=60)
    assert await finder.look_once() == 0
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "time", lambda now=loop.time: now() + 310)
    await lab.pg.execute("update appservice_bridge.relayed set received_at = clock_timestamp()")
    assert await finder.look_once() == 1
    assert await lab.got() == ["$1", "$2"]


async def test_what_something_later_has_overtaken_is_recovered_at_once(lab: Lab) -> None:
    await lab.say(2)
    await lab.reach(2)
    finder = lab.finder(quiet=60)
    assert await finder.look_once() == 0
    await lab.say(3)
    await lab.reach(3)
    await lab.relayed("$3")
    assert await finder.look_once() == 1
    assert await lab.got() == ["$1", "$3", "$2"]


async def test_while_synapse_rests_it_holds_what_did_not_come(
    lab: Lab, later: Callable[[], None]
) -> None:
    await lab.say(2)
    await lab.reach(2)
    await lab.pg.execute(
        "insert into public.application_services_state (as_id, state) values ('bot', 'down')"
    )
    finder = lab.finder(resting=60)
    assert await finder.look_once() == 0
    later()
    assert await finder.look_once() == 1  # but not for ever


async def test_what_waits_in_the_log_has_come(lab: Lab) -> None:
    await lab.say(2)
    await lab.reach(2)
    await lab.stored("$2")
    await lab.pg.execute("update appservice_bridge.relayed set received_at = '2020-01-01'")
    assert await lab.finder().look_once() == 0
    assert await lab.counted("recovered") == 0
    assert await lab.got() == ["$1", "$2"]


async def test_what_is_only_named_in_the_log_has_not_come(lab: Lab) -> None:
    await lab.say(2)
    await lab.say(3)
    await lab.reach(3)
    reply = {"event_id": "$3", "content": {"m.in_reply_to": {"event_id": "$2"}}}
    async with lab.db.transaction() as conn:
        body = json.dumps({"events": [reply]}).encode()
        await capture_log.append_transaction(conn, "bot", txn_id="reply", body=body)
    await lab.pg.execute("update appservice_bridge.relayed set received_at = '2020-01-01'")
    assert await lab.finder().look_once() == 1
    assert sorted(await lab.got()) == ["$1", "$2", "$3"]


async def test_rejected_events_and_dummies_and_rooms_of_others_are_none_of_ours(lab: Lab) -> None:
    await lab.say(2)
    await lab.pg.execute("update public.events set rejection_reason = 'auth' where event_id = '$2'")
    await lab.say(3, kind="org.matrix.dummy_event")
    await lab.say(4, room="!elsewhere")
    await lab.reach(4)
    assert await lab.finder().look_once() == 0
    assert (await lab.cursor(), lab.shown.asked) == (4, [])


async def test_without_a_transaction_nobody_knows_that_the_relay_is_used(
    lab: Lab,
) -> None:
    lab.owners = registered(("bot", "@b_.*"), ("other", "@b_.*"))
    await lab.say(2)
    await lab.reach(2)
    await lab.finder().look_once()
    rows = await lab.pg.fetch("select appservice_id from appservice_bridge.event_cursor")
    assert [row["appservice_id"] for row in rows] == ["bot"]


@pytest.mark.parametrize(
    "fails",
    [
        (502, "bad gateway"),
        (404, "<html>no such container</html>"),
        (401, '{"errcode": "M_UNKNOWN_TOKEN"}'),
        (404, '{"errcode": "M_UNRECOGNIZED"}'),
        (200, "{}"),
    ],
)
async def test_a_homeserver_that_cannot_answer_is_asked_again(
    lab: Lab, fails: tuple[int, str]
) -> None:
    await lab.say(2)
    await lab.reach(2)
    lab.shown.fails = fails
    with pytest.raises(HomeserverAwayError):
        await lab.finder().look_once()
    assert (await lab.got(), await lab.cursor()) == (["$1"], 1)
    lab.shown.fails = None
    assert await lab.finder().look_once() == 1
    assert await lab.got() == ["$1", "$2"]


async def test_what_nobody_is_shown_is_one_dead_letter_that_names_it(lab: Lab) -> None:
    await lab.say(2, shows=False)
    await lab.say(3)
    await lab.reach(3)
    assert await lab.finder().look_once() == 1
    assert await lab.finder().look_once() == 0
    rows = await lab.pg.fetch("select * from appservice_bridge.dead_letter")
    assert [(row["appservice_id"], row["payload"]) for row in rows] == [("bot", None)]
    assert "$2" in rows[0]["reason"]
    assert await lab.got() == ["$1", "$3"]
    assert await lab.counted("unrecoverable") == 1
    assert lab.shown.asked.count(None) == 1  # at last the sender itself was asked for


async def test_a_redaction_of_what_is_not_here_is_kept_back_from_everyone(lab: Lab) -> None:
    await lab.say(2, kind="m.room.redaction", shows=False)
    await lab.reach(2)
    assert await lab.finder().look_once() == 0
    assert (await lab.counted("withheld"), await lab.counted("unrecoverable")) == (1, 0)
    assert await lab.cursor() == 2


async def test_an_invite_that_nobody_is_shown_is_read_where_it_is_stored(lab: Lab) -> None:
    await lab.say(2, room="!private", kind="m.room.member", shows=False)
    await lab.pg.execute("update public.events set state_key = $1 where event_id = '$2'", PUPPET)
    pdu = {
        "type": "m.room.member",
        "sender": "@alice:example.org",
        "state_key": PUPPET,
        "content": {"membership": "invite", "reason": "secret"},
        "origin_server_ts": 5,
        "depth": 3,
        "unsigned": {"invite_room_state": [{"type": "m.room.name"}], "age_ts": 5},
    }
    await lab.pg.execute(
        "insert into public.event_json (event_id, room_id, internal_metadata, json)"
        " values ('$2', '!private', '{}', $1)",
        json.dumps(pdu),
    )
    await lab.reach(2)
    assert await lab.finder().look_once() == 1
    assert await lab.got() == ["$1", "$2"]
    event = json.loads(
        await lab.pg.fetchval(
            "select payload from appservice_bridge.outbox order by position desc limit 1"
        )
    )
    assert event["content"] == {"membership": "invite", "reason": "secret"}
    assert event["invite_room_state"] == [{"type": "m.room.name"}]
    assert event["room_id"] == "!private"
    assert "depth" not in event


async def test_of_a_redacted_invite_only_the_membership_is_left(lab: Lab) -> None:
    await test_an_invite_that_nobody_is_shown_is_read_where_it_is_stored(lab)
    await lab.pg.execute("insert into public.redactions (event_id, redacts) values ('$9', '$2')")
    await lab.pg.execute("delete from appservice_bridge.seen_event where true")
    await lab.pg.execute("update appservice_bridge.event_cursor set settled = 1")
    assert await lab.finder().look_once() == 1
    await lab.got()
    payload = await lab.pg.fetchval(
        "select payload from appservice_bridge.outbox order by position desc limit 1"
    )
    assert json.loads(payload)["content"] == {"membership": "invite"}


async def test_dying_before_the_commit_leaves_everything_to_be_found_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.say(2)
    await lab.reach(2)

    async def die(*_: object) -> None:
        raise RefusedRowError("dies here")

    with monkeypatch.context() as patched:
        patched.setattr(room_events, "append", die)
        with pytest.raises(RefusedRowError):
            await lab.finder().look_once()
    assert (await lab.cursor(), await lab.counted("recovered")) == (1, 0)
    assert await lab.finder().look_once() == 1
    assert await lab.got() == ["$1", "$2"]


async def test_of_two_workers_one_recovers(lab: Lab) -> None:
    for at in range(2, 40):
        await lab.say(at)
    await lab.reach(39)
    found = await asyncio.gather(lab.finder().look_once(), lab.finder().look_once())
    assert sorted(found) == [0, 38]
    assert await lab.got() == [f"${at}" for at in range(1, 40)]


async def test_more_than_a_slice_is_compared_in_one_round(lab: Lab) -> None:
    await lab.pg.execute(
        "insert into public.events (stream_ordering, topological_ordering, event_id, type,"
        " room_id, processed, outlier, sender)"
        " select n, n, '$' || n, 'm.x', '!elsewhere', true, false, '@alice:example.org'"
        "   from generate_series(2, 2500) as n"
    )
    for at in range(2501, 2651):
        await lab.say(at)
    await lab.reach(2650)
    assert await lab.finder().look_once() == 150
    assert await lab.got() == ["$1", *(f"${at}" for at in range(2501, 2651))]


async def test_what_was_not_compared_for_a_month_is_taken_for_nothing_that_is_missing(
    lab: Lab,
) -> None:
    """Rights were missing, say: what came is forgotten, so that nobody can tell."""
    for at in range(2, 5):
        await lab.say(at, days_ago=40)
    await lab.say(5, days_ago=20)
    await lab.say(6)
    await lab.reach(6)
    finder = lab.finder()
    assert await finder.look_once() == 0
    began = "select began from appservice_bridge.event_cursor"
    assert (await lab.cursor(), await lab.pg.fetchval(began)) == (4, 4)
    assert await finder.look_once() == 2
    await store(lab, lab.room_order(), "$3")  # if Synapse has it all the same
    assert await lab.got() == ["$1", "$5", "$6", "$3"]


async def test_an_event_that_a_wrong_clock_made_old_costs_what_is_before_it_nothing(
    lab: Lab,
) -> None:
    await lab.say(2)
    await lab.say(3, days_ago=40)
    await lab.say(4)
    await lab.reach(4)
    assert await lab.finder().look_once() == 3
    assert await lab.got() == ["$1", "$2", "$3", "$4"]
