"""Polling reads what triggers would have captured, beside them or alone: each fact once."""

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import asyncpg
import pytest

from appservice_bridge.domain.capture import CaptureMode
from appservice_bridge.routing.intake import Intake
from appservice_bridge.sources import polling as polling_module
from appservice_bridge.sources.drift_guard import DriftGuard
from appservice_bridge.sources.polling import Polling
from appservice_bridge.sources.reconciler import (
    reconcile_once,
)
from appservice_bridge.storage import capture_log, synapse
from appservice_bridge.storage.capture_state import CaptureState
from appservice_bridge.storage.database import Database, DatabaseUnavailableError
from tests.support.facts import (
    Connection,
    add_device,
    attach,
    change_device,
    invalidate,
    make_synapse_tables,
    outbox,
    send,
    sign,
)
from tests.support.polling import attach_triggers, logged, polling_alone

BOT = "@b_1:example.org"
REMOTE = "@remote:elsewhere.org"
ON = CaptureState(
    mode=CaptureMode.POLLING,
    since=datetime.now(UTC),
    problems=(),
    unreadable=frozenset(),
    looked_at=None,
)


@pytest.fixture
async def polling(pg: Connection, db: Database) -> Polling:
    return await polling_alone(pg, db)


async def test_a_message_is_read_once_whatever_polls_come_after_it(
    pg: Connection, polling: Polling, intake: Intake
) -> None:
    await send(pg, BOT, 5, n=5)
    await polling.poll_once()
    await polling.poll_once()
    await intake.consume_once()
    await polling.poll_once()
    await pg.execute("update stream_positions set stream_id = 5 where stream_name = 'to_device'")
    await polling.poll_once()
    await send(pg, BOT, 6, n=6)
    await polling.poll_once()
    await intake.consume_once()
    assert await outbox(pg) == [5, 6]


async def test_what_was_there_before_polling_began_is_the_past(
    pg: Connection, db: Database
) -> None:
    await make_synapse_tables(pg)
    await send(pg, BOT, 5)
    await change_device(pg, BOT, "DEV", 5)
    await sign(pg, BOT, 6, "@x:y")
    await invalidate(pg, 5, BOT, "DEV")
    one = Polling(db, server_name="example.org")
    await DriftGuard(db, one, wanted=CaptureMode.POLLING).look()
    await one.poll_once()
    assert await logged(pg) == []


async def test_changed_device_lists_of_anyone_and_signatures_of_ours_are_read_once(
    pg: Connection, polling: Polling, intake: Intake
) -> None:
    await pg.execute("insert into appservice_bridge.foreign_user values ('@carol:example.org')")
    await add_device(pg, BOT, "DEV")
    await change_device(pg, BOT, "DEV", 2)
    await change_device(pg, REMOTE, "FAR", 3)
    await sign(pg, BOT, 4, REMOTE)
    await sign(pg, "@carol:example.org", 5, REMOTE)
    wanted = [
        ("device_list", BOT, "DEV", 2, b""),
        ("device_list", REMOTE, "FAR", 3, b""),
        ("signatures", BOT, None, 4, json.dumps([REMOTE]).encode()),
    ]
    for _ in range(2):
        await polling.poll_once()
        assert await logged(pg) == wanted
    await intake.consume_once()
    await polling.poll_once()
    assert await logged(pg) == []


async def test_a_local_device_that_is_gone_was_deleted_after_the_messages_before(
    pg: Connection, polling: Polling, intake: Intake
) -> None:
    await send(pg, BOT, 2, n=2)
    await change_device(pg, BOT, "DEV", 3)
    await change_device(pg, REMOTE, "FAR", 4)
    await polling.poll_once()
    kinds = [(row[0], row[1], row[2]) for row in await logged(pg)]
    assert kinds[0] == ("to_device", BOT, "DEV")
    assert sorted(kinds[1:]) == [
        ("device_deleted", BOT, "DEV"),
        ("device_list", BOT, "DEV"),
        ("device_list", REMOTE, "FAR"),
    ]
    for _ in range(2):  # said again while the stream has not moved on, it does no harm
        await intake.consume_once()
        await polling.poll_once()
        assert {row[0] for row in await logged(pg)} <= {"device_deleted"}
        assert await pg.fetchval("select count(*) from appservice_bridge.deleted_device") == 1
        assert await outbox(pg) == []


async def test_a_device_that_is_made_again_keeps_what_comes_for_it(
    pg: Connection, polling: Polling, intake: Intake
) -> None:
    """Its deletion was captured by no trigger; the change that names it was."""
    await send(pg, BOT, 2, n=2)
    await change_device(pg, BOT, "DEV", 3)
    await pg.execute(
        "insert into appservice_bridge.capture_log (kind, user_id, device_id, stream_id)"
        " values ('device_list', $1, 'DEV', 3)",
        BOT,
    )
    await intake.consume_once()
    await polling.poll_once()
    await pg.execute("insert into public.devices (user_id, device_id) values ($1, 'DEV')", BOT)
    await send(pg, BOT, 4, n=4)
    for _ in range(2):
        await polling.poll_once()
        await intake.consume_once()
    assert await outbox(pg) == [4]


async def test_changed_keys_mark_their_device_once_for_each_change(
    pg: Connection, polling: Polling, intake: Intake
) -> None:
    await pg.execute("insert into appservice_bridge.foreign_user values ('@carol:example.org')")
    await invalidate(pg, 2, BOT, "DEV")
    await invalidate(pg, 3, BOT, "DEV", cache="get_e2e_unused_fallback_key_types")
    await invalidate(pg, 4, BOT, cache="count_e2e_one_time_keys")  # the user's devices went
    await invalidate(pg, 5, BOT, "OTHER", cache="get_device")
    await invalidate(pg, 6, "@carol:example.org", "DEV")
    for _ in range(2):
        await polling.poll_once()
        assert await logged(pg) == [("device_keys", BOT, "DEV", None, b"")]
    await intake.consume_once()
    await polling.poll_once()
    assert await logged(pg) == []
    await invalidate(pg, 8, BOT, "DEV")
    await polling.poll_once()
    await intake.consume_once()
    await invalidate(pg, 7, BOT, "DEV")  # drawn earlier, committed later
    await polling.poll_once()
    assert await logged(pg) == [("device_keys", BOT, "DEV", None, b"")]


class Writers:
    """Writes to the inbox as Synapse does: numbers drawn in order, committed out of it.

    The position is written after the commit, and covers only what is done below it.
    """

    def __init__(self, database: str) -> None:
        self._database = database
        self._drawn = itertools.count(1)
        self._open: set[int] = set()
        self._last = 0
        self.committed: list[int] = []

    async def write(self, times: int, until: Callable[[], bool] = lambda: False) -> None:
        conn = await asyncpg.connect(self._database)
        for _ in range(times):
            if until():
                break
            async with conn.transaction(isolation="repeatable_read"):
                await conn.fetchval("select 1")  # the snapshot is older than the number
                number = self._last = next(self._drawn)
                self._open.add(number)
                await send(conn, BOT, number, n=number)
                await asyncio.sleep(random.uniform(0, 0.02))
            self.committed.append(number)
            self._open.discard(number)
            await conn.execute(
                "update public.stream_positions set stream_id = greatest(stream_id, $1)"
                " where stream_name = 'to_device'",
                min(self._open, default=self._last + 1) - 1,
            )
        await conn.close()


@asynccontextmanager
async def repeated(work: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Do something again and again while the block runs, and once more after it."""
    stop = asyncio.Event()

    async def again() -> None:
        while not stop.is_set():
            await work()
            await asyncio.sleep(0.005)

    async with asyncio.TaskGroup() as group:
        group.create_task(again())
        yield
        stop.set()
    await work()


async def test_writers_that_commit_out_of_order_lose_nothing(
    pg: Connection, database: str, polling: Polling, intake: Intake
) -> None:
    writers = Writers(database)
    async with repeated(polling.poll_once), repeated(intake.consume_once):
        await asyncio.gather(*(writers.write(50) for _ in range(8)))
    await polling.poll_once()
    await intake.consume_once()
    highest = list(itertools.accumulate(writers.committed, max))
    overtaken = [a for a, b in zip(writers.committed, highest, strict=True) if a < b]
    assert len(overtaken) > 20  # what a cursor that moves to the highest number would miss
    assert sorted(await outbox(pg)) == list(range(1, 401))


async def test_a_writer_that_died_before_it_moved_its_position_hides_nothing(
    pg: Connection, polling: Polling, intake: Intake
) -> None:
    for n in range(1, 4):
        await send(pg, BOT, n, n=n)  # and the position stays at 0
        await polling.poll_once()
        await intake.consume_once()
    assert await outbox(pg) == [1, 2, 3]


async def test_polling_and_triggers_together_take_each_message_once(
    pg: Connection, database: str, db: Database, intake: Intake
) -> None:
    await attach(pg)
    polling = Polling(db, server_name="example.org")
    polling.use(ON)
    writers = Writers(database)
    async with repeated(polling.poll_once), repeated(intake.consume_once):
        await asyncio.gather(*(writers.write(50) for _ in range(6)))
    await intake.consume_once()
    assert sorted(await outbox(pg)) == list(range(1, 301))


async def test_switching_back_and_forth_under_writes_loses_and_doubles_nothing(
    pg: Connection, database: str, db: Database, intake: Intake
) -> None:
    await attach(pg)
    polling = Polling(db, server_name="example.org")
    guard = DriftGuard(db, polling, wanted=CaptureMode.TRIGGERS)
    installer = await asyncpg.connect(
        database, server_settings={"search_path": "appservice_bridge, public"}
    )
    writers, stop, modes = Writers(database), asyncio.Event(), []
    async with asyncio.TaskGroup() as group, repeated(intake.consume_once):
        poller = group.create_task(polling.run(stop, every_seconds=0.05))
        writing = [group.create_task(writers.write(2000, stop.is_set)) for _ in range(4)]
        for _ in range(3):
            await asyncio.sleep(0.1)
            await installer.execute("drop trigger appservice_bridge_insert on public.device_inbox")
            await asyncio.sleep(0.1)
            modes.append((await guard.look()).mode)
            await asyncio.sleep(0.2)
            await synapse.install(installer)
            modes += [(await guard.look()).mode, (await guard.look()).mode]
        await asyncio.sleep(0.1)
        stop.set()
        await asyncio.gather(poller, *writing)
    assert await reconcile_once(db) == 0
    await intake.consume_once()
    await installer.close()
    assert modes == [CaptureMode.POLLING, CaptureMode.POLLING, CaptureMode.TRIGGERS] * 3
    assert len(writers.committed) > 20
    assert sorted(await outbox(pg)) == sorted(writers.committed)


async def test_a_trigger_made_again_captures_nothing_before_what_came_without_it(
    pg: Connection, db: Database, intake: Intake
) -> None:
    await attach(pg)
    await pg.execute("drop trigger appservice_bridge_insert on public.device_inbox")
    await send(pg, BOT, 1, n=1)
    await synapse.install(pg)
    await send(pg, BOT, 2, n=2)
    await intake.consume_once()
    assert await outbox(pg) == [1, 2]


async def test_case_26_what_the_homeserver_committed_before_an_event_is_in_the_log_before_it(
    pg: Connection, database: str, db: Database, polling: Polling
) -> None:
    """While polls are under way that began before the key was committed."""

    async def key_then_event(sender: int) -> None:
        conn = await asyncpg.connect(database)
        for turn in range(15):
            number = sender * 100 + turn
            await send(conn, BOT, number, n=number)
            async with db.transaction() as store:
                await polling.catch_up(store)
                await capture_log.append_transaction(
                    store, "bot", txn_id=str(number), body=str(number).encode()
                )
        await conn.close()

    async with repeated(polling.poll_once), repeated(polling.poll_once):
        await asyncio.gather(*(key_then_event(sender) for sender in range(1, 7)))
    known: set[int] = set()
    for kind, _, _, stream_id, body in await logged(pg):
        if kind == "to_device":
            assert isinstance(stream_id, int)
            known.add(stream_id)
        else:
            assert isinstance(body, bytes)
            assert int(body) in known
    assert len(known) == 90


async def test_an_event_is_refused_while_more_is_to_be_caught_up_with_than_one_store_may_take(
    pg: Connection, db: Database, polling: Polling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling_module, "MOST_BEFORE_AN_EVENT", 2)
    for n in (1, 2, 3):
        await send(pg, BOT, n, n=n)
    with pytest.raises(DatabaseUnavailableError):
        async with db.transaction() as conn:
            await polling.catch_up(conn)
    assert await logged(pg) == []
    await polling.poll_once()
    async with db.transaction() as conn:
        await polling.catch_up(conn)
    assert len(await logged(pg)) == 3


async def test_at_rest_nothing_is_read_before_an_event(
    pg: Connection, db: Database, polling: Polling
) -> None:
    await attach_triggers(pg)
    await pg.execute("alter table public.device_inbox disable trigger user")
    await send(pg, BOT, 1)
    async with db.transaction() as conn:
        await Polling(db, server_name="example.org").catch_up(conn)
    assert await logged(pg) == []


async def test_where_signs_are_read_from_follows_a_minute_behind(
    pg: Connection, polling: Polling, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    polled = "select polled from appservice_bridge.stream_floor where stream = 'caches'"
    await invalidate(pg, 2, BOT, "DEV")
    for _ in range(2):
        await polling.poll_once()
    assert await pg.fetchval(polled) is None
    monkeypatch.setattr(polling_module, "LONGEST_WRITE_SECONDS", 0.0)
    await polling.poll_once()
    assert await pg.fetchval(polled) == 2
    await intake.consume_once()
    await invalidate(pg, 3, BOT, "DEV")
    await polling.poll_once()
    assert len(await logged(pg)) == 1
