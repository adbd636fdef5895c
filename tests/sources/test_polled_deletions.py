"""A device that is deleted and made again between two looks of polling is a new device."""

import asyncio
import itertools
import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from appservice_bridge.domain.capture import CaptureMode
from appservice_bridge.routing.intake import Intake
from appservice_bridge.sources.drift_guard import DriftGuard
from appservice_bridge.sources.polling import Polling
from appservice_bridge.storage import inbox, inbox_deletions, outbox
from appservice_bridge.storage.database import Connection as OurConnection
from appservice_bridge.storage.database import Database, connect
from tests.support.facts import (
    Connection,
    add_device,
    attach,
    change_device,
    make_synapse_tables,
    schedule_deletion,
    send,
)
from tests.support.plans import MODES, looked_at, planned
from tests.support.polling import logged, polling_alone

BOT = "@b_1:example.org"
TASKS = 100_000
FILL = f"""
insert into public.scheduled_tasks (id, action, status, timestamp, params)
select 't' || n, 'delete_device_messages', 'complete', n * 1000, '{{}}'
  from generate_series(1, {TASKS}) n;
insert into appservice_bridge.taken_deletion (task_id)
select 't' || n from generate_series(1, {TASKS} - 3) n;
insert into appservice_bridge.stream_floor (stream, settled)
values ('scheduled_tasks', {(TASKS - 50) * 1000});
"""


@pytest.fixture
async def polling(pg: Connection, db: Database) -> Polling:
    return await polling_alone(pg, db)


async def kept(pg: Connection, db: Database, user: str = BOT) -> list[Any]:
    """What is left of the messages to a user, when a seal has met the marks."""
    async with db.transaction() as conn:
        await outbox.drop_deleted(conn, "bot", after=0, max_items=100_000)
    rows = await pg.fetch(
        "select payload from appservice_bridge.outbox"
        " where kind = 'to_device' and user_id = $1 order by position",
        user,
    )
    return [json.loads(row["payload"])["content"]["n"] for row in rows]


async def deletions(pg: Connection) -> list[tuple[object, ...]]:
    """Those that are in the log."""
    return [(row[1], row[2], row[3]) for row in await logged(pg) if row[0] == "inbox_deleted"]


class Life:
    """A device that is deleted and made again, in the steps that Synapse takes, and looks between.

    Attributes:
        between: sent after Synapse read the position and before the device went: for Synapse it is
            the new device's, and a look that sees the device gone drops it.
        new: what was sent to the new device.
    """

    def __init__(self, pg: Connection, number: int) -> None:
        self._pg = pg
        self._ids = itertools.count(number * 100 + 1)
        self._position = 0
        self.user = f"@b_{number}:example.org"
        self.between = 0
        self.new: list[int] = []

    async def _send(self) -> int:
        number = next(self._ids)
        await send(self._pg, self.user, number, n=number)
        return number

    async def live(self) -> None:
        await add_device(self._pg, self.user, "DEV")
        self._position = [await self._send() for _ in range(2)][-1]

    async def go(self) -> None:
        self.between = await self._send()
        await self._pg.execute("delete from public.devices where user_id = $1", self.user)

    async def come_back(self) -> None:
        await add_device(self._pg, self.user, "DEV")
        await change_device(self._pg, self.user, "DEV", next(self._ids))
        self.new.append(await self._send())

    async def be_written_down(self) -> None:
        await schedule_deletion(self._pg, self.user, self._position, self.user)
        await change_device(self._pg, self.user, "DEV", next(self._ids))

    async def be_cleaned_up(self) -> None:
        await self._pg.execute(
            "delete from public.device_inbox where user_id = $1 and stream_id <= $2",
            self.user,
            self._position,
        )
        self.new.append(await self._send())


@pytest.mark.parametrize("written_first", [True, False])
async def test_case_27_wherever_the_looks_fall_the_new_device_gets_all_that_is_its_own_and_no_more(
    pg: Connection, db: Database, polling: Polling, intake: Intake, written_first: bool
) -> None:
    for number, looks in enumerate(itertools.product([True, False], repeat=4), start=1):
        life = Life(pg, number)
        both = [life.be_written_down, life.come_back]
        steps = [life.live, life.go, *(both if written_first else both[::-1]), life.be_cleaned_up]
        for step, look in zip(steps, [*looks, True], strict=True):
            await step()
            if look:
                await polling.poll_once()
                await intake.consume_once()
        found = [n for n in await kept(pg, db, life.user) if n != life.between]
        assert found == life.new, (looks, written_first)


async def test_case_27_a_device_made_again_twice_between_two_looks_is_the_last_of_the_three(
    pg: Connection, db: Database, polling: Polling, intake: Intake
) -> None:
    await add_device(pg, BOT, "DEV")
    await send(pg, BOT, 1, n=1)
    await polling.poll_once()
    await intake.consume_once()
    for last in (2, 3):
        await send(pg, BOT, last, n=last)
        await schedule_deletion(pg, BOT, last, f"task{last}")
    await send(pg, BOT, 4, n=4)
    await polling.poll_once()
    await intake.consume_once()
    assert await kept(pg, db) == [4]


async def test_case_27_what_comes_while_a_look_is_under_way_is_told_from_what_comes_after(
    pg: Connection,
    db: Database,
    polling: Polling,
    intake: Intake,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The inbox was read, then a message comes, its device goes, and the task is there."""
    read = inbox.poll

    async def then_it_goes(conn: OurConnection, *, limit: int, wait: bool) -> int | None:
        appended = await read(conn, limit=limit, wait=wait)
        monkeypatch.setattr(inbox, "poll", read)
        await send(pg, BOT, 1, n=1)
        await schedule_deletion(pg, BOT, 1, "task")
        await send(pg, BOT, 2, n=2)
        return appended

    await add_device(pg, BOT, "DEV")
    monkeypatch.setattr(inbox, "poll", then_it_goes)
    for _ in range(2):
        await polling.poll_once()
        await intake.consume_once()
    assert await kept(pg, db) == [2]


async def test_a_task_is_read_once_however_often_synapse_stamps_it(
    pg: Connection, polling: Polling, intake: Intake
) -> None:
    await schedule_deletion(pg, BOT, 7, "task")
    for status in ("active", "complete"):
        await polling.poll_once()
        assert await deletions(pg) == [(BOT, "DEV", 7)]
        stamp = "timestamp = extract(epoch from clock_timestamp()) * 1000"
        await pg.execute(f"update public.scheduled_tasks set status = $1, {stamp}", status)
    await intake.consume_once()
    await polling.poll_once()
    assert await deletions(pg) == []


@pytest.mark.parametrize("at", ["now() - interval '1 hour'", "now() + interval '1 hour'"])
async def test_tasks_are_read_on_from_the_last_but_no_further_than_our_own_clock(
    pg: Connection, db: Database, polling: Polling, at: str
) -> None:
    """Also where theirs ran ahead, and is set back; and what is within a minute is read again."""
    polled = "select polled from appservice_bridge.stream_floor where stream = 'scheduled_tasks'"
    await schedule_deletion(pg, BOT, 1, "task", at=at)
    await polling.poll_once()
    assert await pg.fetchval(polled) is None  # what is read is not taken yet, until it is
    await polling.poll_once()
    now = "extract(epoch from now())"
    seconds = await pg.fetchval(f"select extract(epoch from least({at}, now()))")
    assert abs(await pg.fetchval(polled) / 1000 - float(seconds)) < 60
    assert await pg.fetchval(polled) / 1000 <= await pg.fetchval(f"select {now}")
    async with db.transaction() as conn:
        assert await inbox_deletions.fresh(conn, limit=10) == ()
    late = f"{at} - interval '50 seconds'" if "-" in at else "now() - interval '5 seconds'"
    await schedule_deletion(pg, BOT, 2, "late", at=late)
    await polling.poll_once()
    assert [upto for _, _, upto in await deletions(pg)] == [1, 2]


async def test_workers_that_look_at_once_take_each_task_once(
    pg: Connection, db: Database, polling: Polling
) -> None:
    others = [Polling(db, server_name="example.org") for _ in range(3)]
    for n in range(1, 31):
        await send(pg, BOT, n, n=n)
        await schedule_deletion(pg, BOT, n, f"task{n}")
        await asyncio.gather(*(one.poll_once() for one in (polling, *others)))
    kinds = [(row[0], row[3]) for row in await logged(pg)]
    wanted = [[("to_device", n), ("inbox_deleted", n)] for n in range(1, 31)]
    assert kinds == list(itertools.chain(*wanted))


async def test_a_worker_that_dies_leaves_messages_and_tasks_or_neither(
    pg: Connection, db: Database, polling: Polling
) -> None:
    class DiedError(Exception):
        pass

    await polling.poll_once()
    await send(pg, BOT, 1, n=1)
    await schedule_deletion(pg, BOT, 1, "task")
    with pytest.raises(DiedError):
        async with db.transaction() as conn:
            await polling.catch_up(conn)
            raise DiedError
    assert await logged(pg) == []
    await polling.poll_once()
    assert [row[0] for row in await logged(pg)] == ["to_device", "inbox_deleted"]


async def test_what_is_read_before_an_event_is_not_routed_without_its_deletion(
    pg: Connection, db: Database, polling: Polling
) -> None:
    await polling.poll_once()
    await send(pg, BOT, 1, n=1)
    await schedule_deletion(pg, BOT, 1, "task")
    async with db.transaction() as conn:
        await polling.catch_up(conn)
    assert [row[0] for row in await logged(pg)] == ["to_device", "inbox_deleted"]


async def test_tasks_from_before_the_first_contact_are_the_past(
    pg: Connection, db: Database
) -> None:
    await make_synapse_tables(pg)
    for n in (1, 2):
        await schedule_deletion(pg, BOT, n, f"task{n}", at="now() - interval '1 minute'")
    polling = Polling(db, server_name="example.org")
    guard = DriftGuard(db, polling, wanted=CaptureMode.POLLING)
    await guard.look()
    await schedule_deletion(pg, BOT, 3, "task3")
    await guard.look()
    stamp = "timestamp = extract(epoch from clock_timestamp()) * 1000"
    await pg.execute(f"update public.scheduled_tasks set {stamp}")
    await polling.poll_once()
    assert await deletions(pg) == [(BOT, "DEV", 3)]


async def test_tasks_of_nobody_s_users_and_those_that_name_no_device_are_passed_over(
    pg: Connection, polling: Polling
) -> None:
    await pg.execute("insert into appservice_bridge.foreign_user values ('@carol:example.org')")
    await schedule_deletion(pg, "@carol:example.org", 7, "hers")
    for name, params in {
        "nothing": None,
        "no JSON": "{",
        "a list": "[]",
        "no device": json.dumps({"user_id": BOT, "up_to_stream_id": 1}),
        "no text": json.dumps({"user_id": BOT, "device_id": "\0", "up_to_stream_id": 1}),
        "no number": json.dumps({"user_id": BOT, "device_id": "DEV", "up_to_stream_id": True}),
        "too large": json.dumps({"user_id": BOT, "device_id": "DEV", "up_to_stream_id": 2**64}),
    }.items():
        await schedule_deletion(pg, BOT, 1, name)
        await pg.execute(
            "update public.scheduled_tasks set params = $1 where id = $2", params, name
        )
    await schedule_deletion(pg, BOT, 9, "ours")
    await polling.poll_once()
    assert await deletions(pg) == [(BOT, "DEV", 9)]
    assert await pg.fetchval("select count(*) from appservice_bridge.taken_deletion") == 9


async def test_where_the_tasks_cannot_be_read_polling_goes_on_and_it_is_said_once(
    pg: Connection, db: Database, polling: Polling, intake: Intake
) -> None:
    guard = DriftGuard(db, polling, wanted=CaptureMode.POLLING)
    await guard.look()
    await pg.execute("alter table public.scheduled_tasks rename to another")
    with capture_logs() as logs:
        for n in (1, 2):
            await send(pg, BOT, n, n=n)
            await polling.poll_once()
    assert [line["event"] for line in logs] == ["polling.left_out"]
    with capture_logs() as logs:
        state = await guard.look()
        await polling.poll_once()
        await guard.look()
    assert state.unreadable == {"scheduled_tasks"}
    (problem,) = state.problems
    assert problem.startswith("table scheduled_tasks is not there: ")
    assert problem.endswith("may get what was for the one before")
    assert [line["event"] for line in logs] == ["drift.found"]
    await intake.consume_once()
    assert await kept(pg, db) == [1, 2]
    await pg.execute("alter table public.another rename to scheduled_tasks")
    await guard.look()
    await schedule_deletion(pg, BOT, 1, "task")
    await polling.poll_once()
    await intake.consume_once()
    assert await kept(pg, db) == [2]


async def test_triggers_do_without_the_tasks(pg: Connection, db: Database) -> None:
    await attach(pg)
    await pg.execute("alter table public.scheduled_tasks rename to another")
    polling = Polling(db, server_name="example.org")
    with capture_logs() as logs:
        state = await DriftGuard(db, polling, wanted=CaptureMode.TRIGGERS).look()
    assert (state.mode, state.problems) == (CaptureMode.TRIGGERS, ())
    assert [line["event"] for line in logs] == ["capture.mode"]
    async with db.transaction() as conn:
        assert await inbox_deletions.forget_taken(conn, batch=10) == 0


async def test_what_synapse_forgot_is_forgotten(
    pg: Connection, db: Database, polling: Polling
) -> None:
    for n in (1, 2):
        await schedule_deletion(pg, BOT, n, f"task{n}")
    await polling.poll_once()
    await pg.execute("delete from public.scheduled_tasks where id = 'task1'")
    for days, forgotten in ((8, 0), (0, 1), (0, 0)):
        async with db.transaction() as conn:
            assert await inbox_deletions.forget_taken(conn, batch=10, days=days) == forgotten
    assert await pg.fetchval("select task_id from appservice_bridge.taken_deletion") == "task2"


@pytest.fixture
async def full(pg: Connection, database: str) -> OurConnection:
    """A homeserver with many tasks, of which the last three are fresh."""
    await make_synapse_tables(pg)
    await pg.execute(FILL)
    return await connect(database)


@pytest.mark.parametrize("analyzed", [False, True])
async def test_tasks_are_read_by_their_stamp_and_no_more_than_the_last(
    full: OurConnection, pg: Connection, analyzed: bool
) -> None:
    if analyzed:
        await pg.execute("analyze")
    looked: list[tuple[str, str, float]] = []
    for mode in MODES:
        for name, statement, parameters in (
            ("fresh", inbox_deletions.FRESH, "60000, 1000"),
            ("last", inbox_deletions.LAST, ""),
        ):
            looked += [
                (name, node["Node Type"], looked_at(node))
                for node in await planned(full, statement, parameters, mode)
                if node.get("Relation Name") == "scheduled_tasks"
            ]
    assert {name for name, _, _ in looked} == {"fresh", "last"}
    assert [one for one in looked if one[1] == "Seq Scan" or one[2] > 200] == []
    assert [task.id for task in await inbox_deletions.fresh(full, limit=1000)] == [
        f"t{n}" for n in range(TASKS - 2, TASKS + 1)
    ]
    await full.close()
