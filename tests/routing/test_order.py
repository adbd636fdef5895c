"""In order, and keys first: what was answered before the next was sent keeps its place."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import asyncpg
import pytest

from appservice_bridge.routing.intake import Intake
from appservice_bridge.storage import capture_log, straight
from appservice_bridge.storage.database import Database, DatabaseUnavailableError
from tests.support.facts import Connection, capture, outbox, relay, wait_until
from tests.support.intake import nobody, registered, small_batches

KEY, MESSAGE = 1, "$opened_by_it"


async def routed_while_the_key_is_locked(pg: Connection, database: str, intake: Intake) -> None:
    """Rule 1's race: another worker has the key's row locked while the relay takes the message."""
    await capture(pg, "@b_1:example.org", KEY)
    other = await asyncpg.connect(database)
    try:
        locked = other.transaction()
        await locked.start()
        await other.execute("select from appservice_bridge.capture_log for update")
        await relay(pg, "bot", MESSAGE)
        consuming = asyncio.create_task(intake.consume_once())
        await asyncio.sleep(0.3)
        await locked.rollback()
        await consuming
        await intake.consume_once()
    finally:
        await other.close()


async def test_a_room_key_locked_by_another_worker_is_not_overtaken_by_its_message(
    pg: Connection, database: str, intake: Intake
) -> None:
    await routed_while_the_key_is_locked(pg, database, intake)
    assert await outbox(pg) == [KEY, MESSAGE]


async def test_an_intake_that_skipped_locked_rows_would_let_the_message_overtake_its_key(
    pg: Connection, database: str, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: this is rule 1 broken on purpose."""
    whole = """select * from capture_log
        where seq > case when $4 then 0 else gate.head end and seq <= reach.last"""
    skipping = capture_log.READ.replace(
        whole, f"select * from ({whole} for update skip locked) unlocked", 1
    )
    assert skipping != capture_log.READ
    monkeypatch.setattr(capture_log, "READ", skipping)
    await routed_while_the_key_is_locked(pg, database, intake)
    assert await outbox(pg) == [MESSAGE, KEY]


async def test_a_row_that_commits_late_is_found_below_the_head(
    pg: Connection, database: str, intake: Intake
) -> None:
    late = await asyncpg.connect(database)
    try:
        open_transaction = late.transaction()
        await open_transaction.start()
        await capture(late, "@b_1:example.org", 1)
        await capture(pg, "@b_1:example.org", 2)
        await intake.consume_once()
        assert await outbox(pg) == [2]
        await open_transaction.commit()
        await capture(pg, "@b_1:example.org", 3)  # sent after the late one was answered
        await intake.consume_once()
    finally:
        await late.close()
    assert await outbox(pg) == [2, 1, 3]


async def test_what_a_late_commit_brings_is_found_even_if_it_is_more_than_a_pass_takes(
    pg: Connection, database: str, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_batches(intake, 3, monkeypatch)
    late = await asyncpg.connect(database)
    try:
        open_transaction = late.transaction()
        await open_transaction.start()
        for n in range(1, 11):
            await capture(late, "@b_1:example.org", n)
        await capture(pg, "@b_1:example.org", 11)
        await intake.consume_once()
        await open_transaction.commit()
    finally:
        await late.close()
    while not (await intake.consume_once()).done:
        pass
    assert await outbox(pg) == [11, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


class TwoLate:
    """Two writers that are late, and what is sent when both were answered."""

    def __init__(self, pg: Connection, old: Connection, new: Connection) -> None:
        self._pg, self._old, self._new = pg, old, new

    async def begin(self, intake: Intake) -> None:
        """One is in a gap that is noted, the other in one of the batch that is read next."""
        await self._old.execute("begin")
        await capture(self._old, "@b_1:example.org", 1)
        await capture(self._pg, "@b_1:example.org", 2)
        await intake.consume_once()
        await capture(self._pg, "@b_1:example.org", 3)
        await self._new.execute("begin")
        await capture(self._new, "@b_1:example.org", 4)
        for n in (5, 6):
            await capture(self._pg, "@b_1:example.org", n)

    async def end(self) -> None:
        await self._old.execute("commit")
        await self._new.execute("commit")
        for n in (7, 8, 9):
            await capture(self._pg, "@b_1:example.org", n)


@pytest.fixture
async def two_late(pg: Connection, database: str) -> AsyncIterator[TwoLate]:
    old, new = await asyncpg.connect(database), await asyncpg.connect(database)
    yield TwoLate(pg, old, new)
    await old.close()
    await new.close()


@pytest.mark.parametrize("when", ["before it is read", "when it was read", "when all is routed"])
async def test_what_is_read_ahead_does_not_overtake_what_commits_meanwhile(
    pg: Connection, intake: Intake, monkeypatch: pytest.MonkeyPatch, two_late: TwoLate, when: str
) -> None:
    read, route, was_read = capture_log.read, straight.route, asyncio.Event()

    async def ahead(*arguments: Any, **options: Any) -> Any:
        if options["behind"] is None:
            return await read(*arguments, **options)
        if when == "before it is read":
            await two_late.end()
        batch = await read(*arguments, **options)
        if when == "when it was read":
            await two_late.end()
        was_read.set()
        return batch

    async def routed(*arguments: Any, **options: Any) -> Any:
        await was_read.wait()
        return await route(*arguments, **options)

    await two_late.begin(intake)
    small_batches(intake, 3, monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(capture_log, "read", ahead)
        patched.setattr(straight, "route", routed)
        assert not (await intake.consume_once()).done
    if when == "when all is routed":
        await two_late.end()
    while not (await intake.consume_once()).done:
        pass
    came = await outbox(pg)
    assert sorted(came) == list(range(1, 10))
    assert max(came.index(1), came.index(4)) < came.index(7)


async def test_what_is_read_ahead_when_the_other_was_routed_has_no_row_twice(
    pg: Connection, intake: Intake, monkeypatch: pytest.MonkeyPatch, two_late: TwoLate
) -> None:
    """The gaps that the other left are in their table by then."""
    read, route, was_routed = capture_log.read, straight.route, asyncio.Event()
    numbers = []

    async def ahead(*arguments: Any, **options: Any) -> Any:
        if options["behind"] is not None:
            await was_routed.wait()
            await two_late.end()
        batch = await read(*arguments, **options)
        assert batch is not None
        numbers.append([row.seq for row in batch.rows])
        return batch

    async def routed(*arguments: Any, **options: Any) -> Any:
        went = await route(*arguments, **options)
        was_routed.set()
        return went

    await two_late.begin(intake)
    monkeypatch.setattr(capture_log, "read", ahead)
    monkeypatch.setattr(straight, "route", routed)
    small_batches(intake, 3, monkeypatch)
    while not (await intake.consume_once()).done:
        pass
    assert sorted(await outbox(pg)) == list(range(1, 10))
    assert all(len(set(each)) == len(each) for each in numbers)


async def test_behind_a_batch_out_of_gaps_alone_nothing_is_read_twice(
    pg: Connection, database: str, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, read, numbers = await asyncpg.connect(database), capture_log.read, []

    async def noted(*arguments: Any, **options: Any) -> Any:
        batch = await read(*arguments, **options)
        assert batch is not None
        numbers.append([row.seq for row in batch.rows])
        return batch

    await late.execute("begin")
    for n in range(1, 6):
        await capture(late, "@b_1:example.org", n)
    await capture(pg, "@b_1:example.org", 6)
    await intake.consume_once()
    await late.execute("commit")
    await late.close()
    monkeypatch.setattr(capture_log, "read", noted)
    small_batches(intake, 2, monkeypatch)
    while not (await intake.consume_once()).done:
        pass
    assert await outbox(pg) == [6, 1, 2, 3, 4, 5]
    assert all(len(set(each)) == len(each) for each in numbers)


async def test_what_cannot_be_read_ahead_costs_the_batch_that_is_routed_nothing(
    pg: Connection, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = capture_log.read

    async def not_ahead(*arguments: Any, **options: Any) -> Any:
        if options["behind"] is not None:
            raise DatabaseUnavailableError("cut off")
        return await read(*arguments, **options)

    monkeypatch.setattr(capture_log, "read", not_ahead)
    for n in (1, 2, 3):
        await capture(pg, "@b_1:example.org", n)
    intake._max_rows = 2
    assert list((await intake.consume_once()).appended) == ["bot"]
    await intake.consume_once()
    assert await outbox(pg) == [1, 2, 3]


async def test_what_was_routed_is_told_before_what_is_read_ahead_has_come(
    pg: Connection, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is told may have what the read waits for: the last connection, say."""
    told, in_time = asyncio.Event(), []

    async def tell(_: object) -> None:
        told.set()

    read = capture_log.read

    async def ahead(*arguments: Any, **options: Any) -> Any:
        if options["behind"] is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(told.wait(), 2)
            in_time.append(told.is_set())
        return await read(*arguments, **options)

    monkeypatch.setattr(capture_log, "read", ahead)
    monkeypatch.setattr(intake, "_on_append", tell)
    intake._max_rows = 2
    for n in (1, 2, 3):
        await capture(pg, "@b_1:example.org", n)
    assert not (await intake.consume_once()).done
    assert (await intake.consume_once()).rows == 1
    assert (in_time, await outbox(pg)) == ([True], [1, 2, 3])


async def test_a_sweep_is_over_as_soon_as_nothing_below_the_head_is_left(
    pg: Connection, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits above it is for passes that read ahead, after a start and under load."""
    read, sweeps, behind = capture_log.read, [], []

    async def noted(*arguments: Any, **options: Any) -> Any:
        sweeps.append(options["sweep"])
        behind.append(options["behind"] is not None)
        return await read(*arguments, **options)

    monkeypatch.setattr(capture_log, "read", noted)
    small_batches(intake, 2, monkeypatch)
    for n in range(1, 10):
        await capture(pg, "@b_1:example.org", n)
    fourth = "(select seq from appservice_bridge.capture_log where stream_id = 4)"
    await pg.execute(f"update appservice_bridge.intake_gate set head = {fourth}")
    stop = asyncio.Event()
    running = asyncio.create_task(intake.run(stop))
    await wait_until(pg, "select count(*) = 0 from appservice_bridge.capture_log")
    stop.set()
    intake.wake.set()
    await running
    assert await outbox(pg) == list(range(1, 10))
    assert sweeps[:3] == [True, True, True]
    assert not any(sweeps[3:])
    assert any(behind)


async def test_a_gap_is_forgotten_once_its_writer_has_given_up(
    pg: Connection, intake: Intake
) -> None:
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with pg.transaction():
                await capture(pg, "@b_1:example.org", 1)
                raise ZeroDivisionError
    await capture(pg, "@b_1:example.org", 2)
    await intake.consume_once()
    gaps = "select first_seq, last_seq from appservice_bridge.intake_gap"
    assert [tuple(row) for row in await pg.fetch(gaps)] == [(1, 3)]
    for _ in range(2):  # dated by the next pass, and found settled by the one after it
        await intake.consume_once()
    assert await pg.fetch(gaps) == []
    assert await outbox(pg) == [2]


async def test_only_one_intake_consumes_at_a_time(
    pg: Connection, db: Database, intake: Intake
) -> None:
    await capture(pg, "@b_1:example.org", 1)
    async with db.transaction() as conn:
        await conn.execute("select from intake_gate for update")
        assert (await intake.consume_once()).appended == {}
    assert (await intake.consume_once()).appended.keys() == {"bot"}


async def test_an_intake_with_other_registrations_does_not_route(
    pg: Connection, db: Database, intake: Intake
) -> None:
    await capture(pg, "@b_1:example.org", 1)
    stale = Intake(db, registered(("other", "@o_.*")), nobody)
    await stale.consume_once()
    assert await pg.fetchval("select count(*) from appservice_bridge.foreign_user") == 0
    await intake.consume_once()
    assert await outbox(pg) == [1]


async def test_a_gap_is_kept_while_a_writer_younger_than_the_pass_that_noted_it_is_open(
    pg: Connection, database: str, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await asyncpg.connect(database)
    opened = writer.transaction()
    read = capture_log.read

    async def beside_writers(*arguments: object, **options: object) -> object:
        """The pass has its own id by now; the writer draws his, and his number, after it."""
        monkeypatch.undo()
        await opened.start()
        await capture(writer, "@b_1:example.org", 1)
        await capture(pg, "@b_1:example.org", 2)
        return await read(*arguments, **options)  # type: ignore[arg-type]

    await capture(pg, "@b_1:example.org", 0)
    monkeypatch.setattr(capture_log, "read", beside_writers)
    for _ in range(4):
        await intake.consume_once()
    await opened.commit()
    await writer.close()
    await capture(pg, "@b_1:example.org", 3)  # caused by what the writer committed
    await intake.consume_once()
    assert await outbox(pg) == [0, 2, 1, 3]
