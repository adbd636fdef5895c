"""What intake makes of the log: routed once, repeats told, the unfit buried, nothing lost."""

import asyncio
from collections.abc import Callable
from types import ModuleType
from typing import Any

import asyncpg
import pytest

from appservice_bridge.domain.budget import Budget
from appservice_bridge.domain.to_device import is_as_synapse_writes_it
from appservice_bridge.domain.transaction import Kind
from appservice_bridge.routing import intake as intake_module
from appservice_bridge.routing.announcing import announce, go_live
from appservice_bridge.routing.intake import Intake
from appservice_bridge.routing.route import MOST_ENTRIES
from appservice_bridge.routing.straight import straight_items
from appservice_bridge.storage import capture_log, ledger, repeats, straight
from appservice_bridge.storage import outbox as outbox_table
from appservice_bridge.storage.database import Database, DatabaseUnavailableError, RefusedRowError
from tests.support.facts import (
    Connection,
    capture,
    message,
    outbox,
    relay,
    wait_until,
    written_otherwise,
)
from tests.support.intake import nobody, registered


def as_synapse_writes_it(n: int) -> bytes:
    return message(n=n).encode()


async def never(*_: object) -> None:
    """What is not to be called."""
    raise AssertionError


LEDGER = "select kind, outcome, items from appservice_bridge.ledger where appservice_id = $1"


async def counted(pg: Connection, appservice_id: str = "bot") -> dict[tuple[str, str], int]:
    rows = await pg.fetch(LEDGER, appservice_id)
    return {(row["kind"], row["outcome"]): row["items"] for row in rows}


async def test_the_same_row_of_the_inbox_is_routed_once_whoever_read_it(
    pg: Connection, intake: Intake
) -> None:
    await capture(pg, "@b_1:example.org", 7)
    await capture(pg, "@b_1:example.org", 7)
    await intake.consume_once()
    await capture(pg, "@b_1:example.org", 7)
    await intake.consume_once()
    assert await outbox(pg) == [7]
    assert await counted(pg) == {(Kind.TO_DEVICE, "routed"): 1, (Kind.TO_DEVICE, "repeated"): 2}


async def test_the_same_room_event_is_routed_once_under_whatever_transaction_id(
    pg: Connection, intake: Intake
) -> None:
    await relay(pg, "bot", "$1", "$2")
    await relay(pg, "bot", "$2", "$3")
    await intake.consume_once()
    await relay(pg, "bot", "$3", "$1", "$4")
    await intake.consume_once()
    assert await outbox(pg) == ["$1", "$2", "$3", "$4"]


async def test_a_user_nobody_owns_is_put_down_as_foreign(pg: Connection, intake: Intake) -> None:
    await capture(pg, "@carol:example.org", 1)
    await intake.consume_once()
    rows = await pg.fetch("select user_id from appservice_bridge.foreign_user")
    assert [row["user_id"] for row in rows] == ["@carol:example.org"]
    assert await pg.fetchval("select count(*) from appservice_bridge.capture_log") == 0


async def test_a_message_that_would_choke_a_client_is_buried_and_its_neighbours_go_on(
    pg: Connection, intake: Intake
) -> None:
    unfit = [b"[]", b"{", b'{"content":[],"type":"t","sender":"s"}', b'{"content":{},"type":1}']
    await capture(pg, "@b_1:example.org", 1)
    for stream_id, body in enumerate(unfit, start=2):
        await capture(pg, "@b_1:example.org", stream_id, body)
    await capture(pg, "@b_1:example.org", 9)
    await intake.consume_once()
    assert await outbox(pg) == [1, 9]
    letters = await pg.fetch("select payload from appservice_bridge.dead_letter order by stream_id")
    assert [row["payload"] for row in letters] == unfit
    assert (await counted(pg))[Kind.TO_DEVICE, "refused"] == len(unfit)


@pytest.mark.parametrize("body", [as_synapse_writes_it, written_otherwise])
async def test_what_postgres_refuses_is_halved_down_to_and_costs_one_row(
    pg: Connection, intake: Intake, monkeypatch: pytest.MonkeyPatch, body: Callable[[int], bytes]
) -> None:
    append, route = outbox_table.append, straight.route

    async def refuse_five(conn: Connection, items: list[outbox_table.Routed]) -> None:
        if any(item.stream_id == 5 for item in items):
            raise RefusedRowError("sqlstate 22000")
        await append(conn, items)

    async def refuse_fifth(conn: Connection, batch: capture_log.Batch, *rest: Any, **o: Any) -> Any:
        if any(row.stream_id == 5 for row in batch.rows):
            raise RefusedRowError("sqlstate 22000")
        return await route(conn, batch, *rest, **o)

    monkeypatch.setattr(outbox_table, "append", refuse_five)
    monkeypatch.setattr(straight, "route", refuse_fifth)
    for n in range(1, 11):
        await capture(pg, "@b_1:example.org", n, body(n))
    while not (await intake.consume_once()).done:
        pass
    assert await outbox(pg) == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    letter = await pg.fetchrow("select stream_id, reason from appservice_bridge.dead_letter")
    assert letter is not None
    assert tuple(letter) == (5, "sqlstate 22000")
    for n in range(11, 41):
        await capture(pg, "@b_1:example.org", n, body(n))
    took = [(await intake.consume_once()).rows for _ in range(3)]
    assert sum(took) == 30  # more at once again


@pytest.mark.parametrize(
    ("table", "step", "body"),
    [
        (capture_log, "read", as_synapse_writes_it),
        (straight, "route", as_synapse_writes_it),
        (capture_log, "hold_gate", written_otherwise),
        (repeats, "take", written_otherwise),
        (outbox_table, "append", written_otherwise),
        (ledger, "count", written_otherwise),
        (capture_log, "consume", written_otherwise),
    ],
)
async def test_a_connection_cut_anywhere_in_a_pass_loses_and_doubles_nothing(
    pg: Connection,
    intake: Intake,
    monkeypatch: pytest.MonkeyPatch,
    table: ModuleType,
    step: str,
    body: Callable[[int], bytes],
) -> None:
    done = getattr(table, step)

    async def cut_before(conn: Connection, *rest: Any, **options: Any) -> Any:
        pid = await conn.fetchval("select pg_backend_pid()")
        await pg.execute("select pg_terminate_backend($1)", pid)
        await done(conn, *rest, **options)
        return await conn.fetchval("select")  # where the step itself asks nothing

    for n in range(1, 6):
        await capture(pg, "@b_1:example.org", n, body(n))
    with monkeypatch.context() as patched:
        patched.setattr(table, step, cut_before)
        with pytest.raises(DatabaseUnavailableError):
            await intake.consume_once()
    assert await outbox(pg) == []
    await intake.consume_once()
    assert await outbox(pg) == [1, 2, 3, 4, 5]


async def test_both_appservices_of_a_shared_user_get_the_message(
    pg: Connection, db: Database
) -> None:
    owners = registered(("one", "@s_.*"), ("two", "@s_.*"), ("three", "@t_.*"))
    await go_live(db, await announce(db, owners, epoch="test"))
    await capture(pg, "@s_1:example.org", 1)
    await Intake(db, owners, nobody).consume_once()
    assert [await outbox(pg, id_) for id_ in ("one", "two", "three")] == [[1], [1], []]


async def test_positions_are_dense_though_many_writers_append_at_once(
    pg: Connection, database: str, intake: Intake
) -> None:
    async def write(first: int) -> None:
        conn = await asyncpg.connect(database)
        for n in range(first, first + 50):
            await capture(conn, "@b_1:example.org", n)
        await conn.close()

    async with asyncio.TaskGroup() as group:
        for writer in range(6):
            group.create_task(write(1 + 100 * writer))
        for _ in range(20):
            await intake.consume_once()
            await asyncio.sleep(0.01)
    while not (await intake.consume_once(sweep=True)).done:
        pass
    found = await outbox(pg)
    assert len(found) == 300
    for writer in range(6):
        own = [n for n in found if n // 100 == writer]
        assert own == sorted(own)
    positions = "select array_agg(position order by position) from appservice_bridge.outbox"
    assert await pg.fetchval(positions) == list(range(1, 301))


def test_stored_messages_look_like_synapses() -> None:
    assert is_as_synapse_writes_it(message(n=1).encode())
    assert not is_as_synapse_writes_it(written_otherwise(1))


async def test_a_kind_of_a_newer_release_is_kept_for_an_operator(
    pg: Connection, intake: Intake
) -> None:
    await pg.execute(
        "insert into appservice_bridge.capture_log (kind, user_id, body)"
        " values ('of_tomorrow', '@b_1:example.org', 'body')"
    )
    await capture(pg, "@b_1:example.org", 1)
    await intake.consume_once()
    assert await outbox(pg) == [1]
    letter = await pg.fetchrow("select kind, payload from appservice_bridge.dead_letter")
    assert letter is not None
    assert tuple(letter) == ("of_tomorrow", b"body")


async def test_an_endless_array_is_one_dead_letter_and_its_neighbours_go_on(
    pg: Connection, intake: Intake
) -> None:
    endless = b"[" + b"0," * MOST_ENTRIES + b"0]"
    await pg.execute(
        "insert into appservice_bridge.capture_log (kind, appservice_id, body)"
        " values ('transaction', 'bot', $1)",
        b'{"events":' + endless + b',"ephemeral":[{"event_id":"$typing"}]}',
    )
    await relay(pg, "bot", "$1")
    await intake.consume_once()
    assert await outbox(pg) == ["$typing", "$1"]
    letters = await pg.fetch("select kind, payload from appservice_bridge.dead_letter")
    assert [tuple(row) for row in letters] == [("event", endless)]


async def test_a_row_that_another_worker_buried_costs_no_other_row(
    pg: Connection, db: Database, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = outbox_table.append

    async def refuse_one(conn: Connection, items: list[outbox_table.Routed]) -> None:
        if any(item.stream_id == 1 for item in items):
            raise RefusedRowError("sqlstate 22000")
        await append(conn, items)

    monkeypatch.setattr(outbox_table, "append", refuse_one)
    for n in (1, 2):
        await capture(pg, "@b_1:example.org", n, written_otherwise(n))
    other = Intake(db, intake._owners, nobody)
    for one in (intake, other):
        one._max_rows = 1
        one._first_seq = 1  # both saw it refused
    await intake.consume_once()
    await other._halve_or_bury(RefusedRowError("sqlstate 22000"), sweep=False)
    assert await pg.fetchval("select count(*) from appservice_bridge.dead_letter") == 1
    while not (await other.consume_once()).done:
        pass
    assert await outbox(pg) == [2]


async def test_what_was_stored_for_an_appservice_that_is_withdrawn_waits_with_the_rest_of_its_own(
    pg: Connection, db: Database, intake: Intake
) -> None:
    await relay(pg, "bot", "$1")
    await intake.consume_once()
    await relay(pg, "bot", "$2")  # stored, and the homeserver was told so
    await relay(pg, "nobody", "$3")
    others = registered(("other", "@o_.*"))
    await announce(db, others, epoch="test")
    await Intake(db, others, nobody).consume_once()
    assert await outbox(pg) == ["$1", "$2"]
    assert await counted(pg) == {(Kind.EVENT, "routed"): 2}
    assert await counted(pg, "nobody") == {("transaction", "no_transport"): 1}


ROUTED = """
select appservice_id, position, kind, user_id, device_id, stream_id, convert_from(payload, 'UTF8'),
       captured_at
  from appservice_bridge.outbox order by 1, 2
"""
COUNTED = (
    "select appservice_id, kind, outcome, items from appservice_bridge.ledger order by 1, 2, 3"
)
TAKEN = "select stream_id, user_id, device_id from appservice_bridge.taken order by 1, 2, 3"
FORGOTTEN = "truncate appservice_bridge.outbox, appservice_bridge.ledger, appservice_bridge.taken"
BEHIND = "select appservice_id, position, bytes_in from appservice_bridge.outbox_head order by 1"
DATED = """
update appservice_bridge.capture_log
   set captured_at = timestamptz '2026-01-01' + make_interval(secs => stream_id * 1000.123457)
"""
AN_HOUR_AGO = "update appservice_bridge.capture_log set captured_at = now() - interval '1 hour'"
FROM_THE_START = "update appservice_bridge.outbox_head set position = 0, bytes_in = 0"


@pytest.mark.parametrize("limit", [0, 10**9])
async def test_what_goes_straight_becomes_what_it_becomes_the_long_way(
    pg: Connection, db: Database, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    owners = registered(("one", "@[bs]_.*"), ("two", "@s_.*"))
    await go_live(db, await announce(db, owners, epoch="test"))
    became, went, route = [], list[bool](), straight.route

    async def noted(*arguments: Any, **options: Any) -> straight.Went | None:
        routed = await route(*arguments, **options)
        went.append(routed is not None)
        return routed

    monkeypatch.setattr(straight, "route", noted)
    for way in (straight_items, lambda _rows, _owners: None):
        monkeypatch.setattr(intake_module, "straight_items", way)
        intake = Intake(db, owners, nobody, Budget(appservice_bytes=limit))
        for n in (1, 2, 3):
            await capture(pg, "@b_1:example.org", n)
            await capture(pg, '@s_"é:example.org', n)
        await pg.execute(DATED)
        await intake.consume_once()
        for n in (3, 4, 4):  # one that was taken before; and then the same one twice in a batch
            await capture(pg, "@s_2:example.org", 5)
            await capture(pg, "@b_1:example.org", n)
            await pg.execute(DATED)
            await intake.consume_once()
        became.append([await pg.fetch(asked) for asked in (ROUTED, COUNTED, TAKEN, BEHIND)])
        await pg.execute(FORGOTTEN)
        await pg.execute(FROM_THE_START)
    assert went == [True, False, False, False]  # what was taken before does not
    assert became[0] == became[1]
    assert len(became[0][0]) == 3 + 3 + 3 + 2 + 1


async def test_a_batch_of_nothing_but_such_messages_goes_straight(
    pg: Connection, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_table, "append", never)
    await capture(pg, "@b_1:example.org", 1)
    await intake.consume_once()
    assert await outbox(pg) == [1]


async def test_a_batch_is_larger_while_batches_go_straight(
    pg: Connection, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "MAX_ROWS", 2)
    monkeypatch.setattr(intake_module, "STRAIGHT_ROWS", 4)
    intake._max_rows = 2
    for n in range(1, 11):
        await capture(pg, "@b_1:example.org", n)
    for n in range(11, 17):
        await capture(pg, "@b_1:example.org", n, written_otherwise(n))
    rows = [(await intake.consume_once()).rows]
    while rows[-1]:
        rows.append((await intake.consume_once()).rows)
    assert max(rows) == 4
    assert (rows[0], rows[-4:]) == (2, [2, 2, 2, 0])  # of the second some were read ahead
    assert await outbox(pg) == list(range(1, 17))


async def test_what_went_straight_is_handed_over_as_it_stands_in_the_outbox(
    pg: Connection, db: Database, intake: Intake
) -> None:
    for after, few in ((0, (1, 2)), (2, (3, 4, 5))):
        for n in few:
            await capture(pg, '@b_"é:example.org', n)
        await pg.execute(AN_HOUR_AGO)
        handed = (await intake.consume_once()).appended["bot"]
        async with db.transaction() as conn:
            read = await outbox_table.next_items(
                conn, "bot", after=after, max_items=10, max_bytes=10**6
            )
        assert [item[:4] for item in handed] == [item[:4] for item in read]
        assert handed[0].captured == pytest.approx(read[0].captured, abs=5)


async def test_where_anything_is_not_as_it_was_captured_nothing_is_handed_over(
    pg: Connection, db: Database, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    await capture(pg, "@b_1:example.org", 1)
    await intake.consume_once()
    for n in (1, 2):  # one that was taken before
        await capture(pg, "@b_1:example.org", n)
    assert (await intake.consume_once()).appended == {"bot": ()}
    monkeypatch.setattr(straight, "HANDED_ROWS", 2)
    for n in (3, 4, 5):
        await capture(pg, "@b_1:example.org", n)
    assert (await intake.consume_once()).appended == {"bot": ()}
    full = Intake(db, registered(("bot", "@b_.*")), nobody, Budget(appservice_bytes=0))
    await capture(pg, "@b_1:example.org", 6)
    assert (await full.consume_once()).appended == {"bot": ()}


async def test_a_gap_is_dated_and_forgotten_by_batches_that_go_straight(
    pg: Connection, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_log, "consume", never)
    await pg.execute("select nextval('appservice_bridge.capture_seq')")  # by who then gave up
    gaps = []
    for n in (1, 2, 3):
        await capture(pg, "@b_1:example.org", n)
        await intake.consume_once()
        gaps.append(await pg.fetchval("select count(*) from appservice_bridge.intake_gap"))
    assert gaps == [1, 1, 0]


async def test_what_another_intake_consumed_since_it_was_read_is_not_consumed_again(
    pg: Connection, db: Database, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = straight.route

    async def late(*arguments: Any, **options: Any) -> straight.Went | None:
        monkeypatch.undo()
        await intake.consume_once()
        await capture(pg, "@b_1:example.org", 2)
        return await route(*arguments, **options)

    other = Intake(db, registered(("bot", "@b_.*")), nobody)
    await capture(pg, "@b_1:example.org", 1)
    monkeypatch.setattr(straight, "route", late)
    assert (await other.consume_once()).rows == 1
    assert await outbox(pg) == [1, 2]
    assert (await counted(pg)) == {(Kind.TO_DEVICE, "routed"): 2}


async def test_what_is_taken_past_the_gate_while_it_goes_straight_is_a_repeat(
    pg: Connection, intake: Intake
) -> None:
    await capture(pg, "@b_1:example.org", 1)
    await capture(pg, "@b_1:example.org", 2)
    async with pg.transaction():
        await pg.execute(
            "insert into appservice_bridge.taken values ('@b_1:example.org', 'DEV', 1)"
        )
        passing = asyncio.create_task(intake.consume_once())
        await wait_until(pg, "select exists (select from pg_locks where not granted)")
    assert (await passing).rows == 2
    assert await outbox(pg) == [2]
    assert await counted(pg) == {(Kind.TO_DEVICE, "routed"): 1, (Kind.TO_DEVICE, "repeated"): 1}


async def test_while_another_holds_the_gate_nothing_goes_straight(
    pg: Connection, intake: Intake
) -> None:
    await capture(pg, "@b_1:example.org", 1)
    async with pg.transaction():
        await pg.execute("select from appservice_bridge.intake_gate for update")
        assert (await intake.consume_once()).rows == 0
        assert await pg.fetchval("select count(*) from appservice_bridge.capture_log") == 1
    await intake.consume_once()
    assert await outbox(pg) == [1]


async def test_a_batch_of_which_a_row_is_gone_does_not_go_straight(
    pg: Connection, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another hand in the tables: nothing is done by halves."""
    route = straight.route

    async def without_the_first(*arguments: Any, **options: Any) -> straight.Went | None:
        await pg.execute("delete from appservice_bridge.capture_log where stream_id = 1")
        return await route(*arguments, **options)

    monkeypatch.setattr(straight, "route", without_the_first)
    for n in (1, 2):
        await capture(pg, "@b_1:example.org", n)
    with pytest.raises(capture_log.LogConsumedElsewhereError):
        await intake.consume_once()
    assert await outbox(pg) == []
    assert await pg.fetchval("select count(*) from appservice_bridge.capture_log") == 1


async def test_a_batch_for_an_appservice_without_an_outbox_does_not_go_straight(
    pg: Connection, intake: Intake
) -> None:
    await capture(pg, "@b_1:example.org", 1)
    await pg.execute("delete from appservice_bridge.outbox_head")
    with pytest.raises(outbox_table.OutboxMissingError):
        await intake.consume_once()
    assert await pg.fetchval("select count(*) from appservice_bridge.capture_log") == 1
