"""What a room lacks is in the log before what comes of it, whatever Synapse's sender left out."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
import pytest
from structlog.testing import capture_logs

from appservice_bridge.domain.capture import CaptureMode
from appservice_bridge.domain.room_interest import RoomEvent
from appservice_bridge.routing.intake import Intake
from appservice_bridge.sources import room_order
from appservice_bridge.sources.drift_guard import DriftGuard
from appservice_bridge.sources.polling import Polling
from appservice_bridge.storage import capture_log, room_events
from appservice_bridge.storage.database import Database, DatabaseUnavailableError, connect
from tests.support.facts import Connection, send, wait_until
from tests.support.forgotten import PUPPET, ROOM, Lab, homeserver_that_shows, of, one_room, store
from tests.support.plans import MODES, is_scan, looked_at, planned

EVENTS: Final = 20_000
MANY_EVENTS: Final = f"""
insert into public.events (stream_ordering, topological_ordering, event_id, type, room_id,
                           processed, outlier, sender)
select n, n, '$' || n, 'm.x', '!' || n % 2, true, false, '@alice:example.org'
  from generate_series(2, {EVENTS}) as n;
insert into appservice_bridge.seen_event
select 'bot', sha256(('$' || n)::bytea), now() from generate_series(2, {EVENTS} - 30) as n
"""
# One room is known up to shortly before; of the other nothing is, and all was compared till then.
LOOK: Final = (
    f"'bot', '{{${EVENTS},${EVENTS - 1}}}', '{{${EVENTS - 10},null}}', {EVENTS - 20}, 1000,"
    " '29 days'"
)


@pytest.fixture
async def lab(pg: Connection, db: Database, intake: Intake) -> AsyncIterator[Lab]:
    async with homeserver_that_shows() as shown, one_room(pg, db, intake, shown) as one:
        yield one


async def test_what_a_room_lacks_comes_before_what_is_said_in_it(lab: Lab) -> None:
    await lab.say(2)
    await lab.say(3, room="!elsewhere")
    await lab.say(4)
    await store(lab, lab.room_order(), "$4")
    assert await lab.got() == ["$1", "$2", "$4"]
    assert (await lab.cursor(), await lab.counted("recovered")) == (1, 1)


async def test_what_is_lacking_between_two_transactions_comes_before_the_second(lab: Lab) -> None:
    order = lab.room_order()
    for at in range(2, 8):
        await lab.say(at)
    await store(lab, order, "$2", "$3")
    await store(lab, order, "$6")
    await store(lab, order, "$7")
    assert await lab.got() == [f"${at}" for at in range(1, 8)]
    assert await lab.counted("recovered") == 2


async def test_what_was_overtaken_is_a_repeat_when_it_comes(lab: Lab) -> None:
    order = lab.room_order()
    await lab.say(2)
    await lab.say(3)
    await store(lab, order, "$3")
    await store(lab, order, "$2")
    assert await lab.got() == ["$1", "$2", "$3"]
    assert await lab.counted("repeated") == 1


async def test_a_transaction_that_was_not_stored_has_not_come(lab: Lab) -> None:
    order = lab.room_order()
    await lab.say(2)
    await lab.say(3)
    with pytest.raises(OSError, match="no room"):
        async with order.kept("bot", of("$2")):
            raise OSError("no room")
    await store(lab, order, "$3")
    assert await lab.got() == ["$1", "$2", "$3"]


async def test_while_it_is_not_known_what_is_lacking_nothing_is_stored(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = lab.room_order()
    await lab.say(2)
    await lab.say(3)
    look = room_events.unseen_within

    async def cut_off(conn: Connection, *args: Any, **more: Any) -> list[RoomEvent]:
        pid = await conn.fetchval("select pg_backend_pid()")
        await lab.pg.execute("select pg_terminate_backend($1)", pid)
        return await look(conn, *args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(room_events, "unseen_within", cut_off)
        with pytest.raises(DatabaseUnavailableError):
            await store(lab, order, "$3")
    await store(lab, order, "$3")
    assert await lab.got() == ["$1", "$2", "$3"]


async def test_more_than_a_slice_is_recovered_in_its_order(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room_order, "SLICE", 7)
    monkeypatch.setattr(room_order, "BATCH", 3)
    for at in range(2, 32):
        await lab.say(at)
    await store(lab, lab.room_order(), "$31")
    assert await lab.got() == [f"${at}" for at in range(1, 32)]


async def test_what_waits_in_the_log_is_not_lacking(lab: Lab) -> None:
    await lab.say(2)
    await lab.say(3)
    await lab.stored("$2")
    await store(lab, lab.room_order(), "$3")
    assert await lab.got() == ["$1", "$2", "$3"]
    assert await lab.counted("recovered") == 0


@pytest.mark.parametrize(
    "names_it",
    [
        {"ephemeral": [{"type": "m.receipt", "room_id": ROOM, "content": {"$2": {}}}]},
        {"events": [{"event_id": "$9", "content": {"m.in_reply_to": {"event_id": "$2"}}}]},
        {"events": [{"event_id": "$22", "content": {}}]},
    ],
)
async def test_what_is_only_named_in_the_log_is_lacking(lab: Lab, names_it: object) -> None:
    await lab.say(2)
    await lab.say(3)
    async with lab.db.transaction() as conn:
        body = json.dumps(names_it).encode()
        await capture_log.append_transaction(conn, "bot", txn_id="names it", body=body)
    await store(lab, lab.room_order(), "$3")
    got = [one for one in await lab.got() if one in {"$2", "$3"}]
    assert got == ["$2", "$3"]


async def test_where_keys_are_polled_they_come_before_what_a_room_lacks(lab: Lab) -> None:
    polling = Polling(lab.db, server_name="example.org")
    await DriftGuard(lab.db, polling, wanted=CaptureMode.POLLING).look()
    lab.before = polling.catch_up
    await send(lab.pg, PUPPET, 1, n=1)
    await lab.say(2)
    await lab.say(3)
    await store(lab, lab.room_order(), "$3")
    await lab.got()
    rows = await lab.pg.fetch("select kind from appservice_bridge.outbox order by position")
    assert [row["kind"] for row in rows] == ["event", "to_device", "event", "event"]


async def test_what_there_is_no_room_for_stays_where_it_is(lab: Lab) -> None:
    order = lab.room_order()
    await lab.say(2)
    await lab.say(3)
    await lab.pg.execute("update appservice_bridge.capture_watch set keys_only = true")
    with pytest.raises(OSError, match="no room"):
        async with order.kept("bot", of("$3")):
            raise OSError("no room")
    assert await lab.got() == ["$1"]
    await lab.pg.execute("update appservice_bridge.capture_watch set keys_only = false")
    await store(lab, order, "$3")
    assert await lab.got() == ["$1", "$2", "$3"]


async def test_behind_a_long_log_nobody_looks_and_later_all_the_same(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = lab.room_order()
    await lab.say(2)
    await lab.say(3)
    await lab.stored()
    with monkeypatch.context() as patched:
        patched.setattr(room_events, "LONGEST_LOG", 0)
        async with order.kept("bot", of("$3")):
            pass
    await lab.got()
    assert await lab.counted("recovered") == 0
    await store(lab, order, "$3")
    assert await lab.got() == ["$1", "$2", "$3"]


async def test_what_is_remembered_has_a_limit(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room_order, "MOST_ROOMS", 1)
    order = lab.room_order()
    await lab.say(2)
    await lab.say(3)
    async with order.kept("bot", of("$2")):
        pass  # for the order it came, but it was never stored
    async with order.kept("bot", of("$4", room="!elsewhere")):
        pass
    await store(lab, order, "$3")
    assert await lab.got() == ["$1", "$2", "$3"]


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"events": 1}', b'{"events": [{}]}', b"\xff", of("$2", room=1)],  # type: ignore[arg-type]
)
async def test_what_cannot_be_read_is_let_through(lab: Lab, body: bytes) -> None:
    stored = False
    async with lab.room_order().kept("bot", body):
        stored = True
    assert stored


async def test_without_a_table_it_is_let_through_and_asked_for_again_after_a_while(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = lab.room_order()
    await lab.say(2)
    await lab.say(3)
    await lab.say(4)
    await lab.pg.execute("alter table public.events rename to gone")
    async with order.kept("bot", of("$3")):
        pass
    await lab.pg.execute("alter table public.gone rename to events")
    async with order.kept("bot", of("$3")):
        pass
    assert await lab.got() == ["$1"]
    loop = asyncio.get_running_loop()
    with monkeypatch.context() as patched:
        patched.setattr(loop, "time", lambda now=loop.time: now() + 60)
        await store(lab, order, "$4")
    assert await lab.got() == ["$1", "$2", "$3", "$4"]


async def test_an_answer_that_is_outstanding_is_said_and_one_that_came_is_not(lab: Lab) -> None:
    order = lab.room_order()
    for at in range(2, 6):
        await lab.say(at)
    lab.shown.fails = (502, "bad gateway")
    with capture_logs() as logs:
        await store(lab, order, "$3")
    assert [one["reason"] for one in logs if one["event"] == "room_order.late"] == [
        "the homeserver does not show all of it yet"
    ]
    lab.shown.fails = None
    with capture_logs() as logs:
        await store(lab, order, "$5")
    assert "room_order.late" not in {one["event"] for one in logs}
    assert await lab.got() == ["$1", "$3", "$4", "$5"]


@asynccontextmanager
async def hanging() -> AsyncIterator[str]:
    """The address of one who takes questions and answers none."""
    asked: set[asyncio.StreamWriter] = set()

    async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.add(writer)

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    yield f"http://{host}:{port}"
    server.close()
    for writer in asked:
        writer.close()


async def test_a_homeserver_that_hangs_holds_a_room_up_once_and_for_a_while_at_most(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room_order, "ASKED_SECONDS", 1.0)
    for at in range(2, 6):
        await lab.say(at)
    await lab.keep(2)
    await lab.keep(4)
    async with hanging() as lab.shown.url:
        order = lab.room_order()
        async with asyncio.timeout(20):
            await store(lab, order, "$5")
        await lab.say(6)
        async with asyncio.timeout(0.9):
            await store(lab, order, "$6")
    assert await lab.got() == ["$1", "$2", "$4", "$5", "$6"]


async def test_what_one_event_cannot_be_shown_for_costs_the_others_nothing(lab: Lab) -> None:
    for at in range(2, 6):
        await lab.say(at)
    await lab.keep(2)
    await lab.keep(4)
    lab.shown.fails = (502, "bad gateway")
    await store(lab, lab.room_order(), "$5")
    assert await lab.got() == ["$1", "$2", "$4", "$5"]


async def test_a_database_that_is_stuck_holds_a_transaction_up_for_a_while_at_most(
    lab: Lab, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room_order, "LONGEST_SECONDS", 0.3)
    order = lab.room_order()
    await lab.say(2)
    other = await asyncpg.connect(database)
    async with other.transaction():
        await other.execute("lock table public.events")
        async with asyncio.timeout(4), order.kept("bot", of("$2")):
            pass
    await other.close()


async def test_many_that_look_at_a_table_that_is_locked_leave_connections_to_lanes(
    lab: Lab, db: Database, database: str
) -> None:
    """An operator's VACUUM FULL, say."""
    order = lab.room_order()

    async def look(at: int) -> None:
        async with order.kept("bot", of(f"${at}")):
            pass

    locker = await asyncpg.connect(database)
    await locker.execute("begin; lock table public.events in access exclusive mode")
    looking = [asyncio.create_task(look(at)) for at in range(2, 32)]
    await wait_until(lab.pg, "select count(*) >= 4 from pg_locks where not granted")
    async with asyncio.timeout(1), db.transaction() as conn, db.statement() as other:
        assert await conn.fetchval("select 1") + await other.fetchval("select 1") == 2
    await locker.close()
    await asyncio.gather(*looking)


async def test_what_came_so_long_ago_that_it_is_forgotten_is_a_repeat(lab: Lab) -> None:
    """What Synapse had in its database when it was killed, it sends at its next failure."""
    order = lab.room_order()
    for at in range(2, 5):
        await lab.say(at, days_ago=31)
    await store(lab, order, "$2", "$3")
    await lab.pg.execute("update appservice_bridge.event_cursor set settled = 3")
    await lab.pg.execute("delete from appservice_bridge.seen_event where true")
    await lab.pg.execute("delete from appservice_bridge.relayed where true")
    await store(lab, order, "$2", "$4")  # the second of them was not compared
    assert await lab.got() == ["$1", "$2", "$3", "$4"]
    assert await lab.counted("repeated") == 1


async def test_what_is_older_than_anyone_remembers_is_not_lacking(lab: Lab) -> None:
    await lab.say(2, days_ago=31)
    await lab.say(3)
    await lab.say(4)
    await store(lab, lab.room_order(), "$4")
    assert await lab.got() == ["$1", "$3", "$4"]


async def test_what_synapse_has_in_memory_at_its_first_transaction_is_not_lost(lab: Lab) -> None:
    await lab.pg.execute("delete from appservice_bridge.event_cursor where true")
    order = lab.room_order()
    for at in range(2, 5):
        await lab.say(at)
    await lab.reach(4)
    await store(lab, order, "$2")
    await lab.finder().look_once()
    assert await lab.got() == ["$1", "$2", "$3", "$4"]


async def test_a_first_transaction_with_what_happened_long_ago_begins_at_the_present(
    lab: Lab,
) -> None:
    """It stayed in Synapse's database, and others were sent past the bridge since."""
    await lab.pg.execute("delete from appservice_bridge.event_cursor where true")
    await lab.say(2, days_ago=20)
    await lab.say(3, days_ago=10)
    await lab.reach(3)
    await store(lab, lab.room_order(), "$2")
    assert await lab.cursor() is None
    for _ in range(2):
        await lab.finder().look_once()
    assert (await lab.got(), await lab.cursor()) == (["$1", "$2"], 3)


@pytest.mark.parametrize("mode", MODES)
async def test_a_look_reads_what_lies_between_two_events_of_a_room(
    lab: Lab, database: str, mode: str
) -> None:
    await lab.pg.execute(MANY_EVENTS)
    conn = await connect(database)
    ran = await planned(conn, room_events.UNSEEN_WITHIN, LOOK, mode)
    await conn.close()
    scans = [(node["Relation Name"], looked_at(node)) for node in ran if is_scan(node)]
    assert {name for name, _ in scans} == {"events", "event_cursor", "seen_event"}
    assert [one for one in scans if one[1] > 10] == []
