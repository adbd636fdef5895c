"""Dead letters put back, discarded and found, on a real database."""

import asyncio
from uuid import UUID

import pytest

from appservice_bridge.delivery import operating
from appservice_bridge.delivery.purge import Retention, purge_once
from appservice_bridge.routing.intake import Intake
from appservice_bridge.storage import letters, outbox, registrations
from appservice_bridge.storage.database import Database
from appservice_bridge.storage.outbox import OutboxMissingError
from tests.support.dead_letters import BOT, BY, buried, item, ledger, set_aside
from tests.support.facts import Connection, capture
from tests.support.facts import outbox as waiting


async def redriven(db: Database, *ids: str, appservice_id: str = "bot") -> int:
    return len(await operating.redrive(db, appservice_id, [UUID(one) for one in ids], by=BY))


async def deleted(pg: Connection, user: str = BOT, device: str = "DEV") -> None:
    """The homeserver says that a device went; not routed yet."""
    await pg.execute(
        "insert into appservice_bridge.capture_log (kind, user_id, device_id)"
        " values ('device_deleted', $1, $2)",
        user,
        device,
    )


async def test_letters_go_to_the_end_of_the_outbox_in_the_order_they_were_buried(
    pg: Connection, db: Database, intake: Intake
) -> None:
    first, second = await set_aside(pg, 1), await set_aside(pg, 2)
    await capture(pg, BOT, 3)
    await intake.consume_once()
    assert await redriven(db, second, first) == 2
    assert await waiting(pg) == [3, 1, 2]
    row = await pg.fetchrow("select * from appservice_bridge.outbox where position = 2")
    assert row is not None
    key = [row["kind"], row["user_id"], row["device_id"], row["stream_id"], row["payload"]]
    assert key == ["to_device", BOT, "DEV", 1, item(1)]
    assert await buried(pg) == 0


async def test_more_letters_than_one_batch_keep_their_order(
    pg: Connection, db: Database, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operating, "BATCH", 3)
    for n in range(1, 9):
        await set_aside(pg, n)
    await operating.redrive(db, "bot", await operating.all_of(db, "bot"), by=BY)
    assert await waiting(pg) == list(range(1, 9))


async def test_redriven_is_counted_and_routed_is_not_counted_again(
    pg: Connection, db: Database, intake: Intake
) -> None:
    await capture(pg, BOT, 1)
    await intake.consume_once()
    await redriven(db, await set_aside(pg, 2))
    assert await ledger(pg) == {"routed": 1, "redriven": 1}
    head = await pg.fetchrow("select position, bytes_in from appservice_bridge.outbox_head")
    stored = await pg.fetchval("select sum(octet_length(payload)) from appservice_bridge.outbox")
    assert head is not None
    assert tuple(head) == (2, stored)


async def test_two_redrives_of_one_letter_at_one_moment_deliver_it_once(
    pg: Connection, db: Database, intake: Intake
) -> None:
    letter = await set_aside(pg, 1)
    async with db.transaction() as conn:
        await registrations.wait_for_gate(conn)
        both = [asyncio.create_task(redriven(db, letter)) for _ in range(2)]
        await asyncio.sleep(0.3)
        assert not any(one.done() for one in both)  # they wait for the gate
    assert sorted(await asyncio.gather(*both)) == [0, 1]
    assert await waiting(pg) == [1]


async def test_a_redrive_that_fails_leaves_the_letter(pg: Connection, db: Database) -> None:
    letter = await set_aside(pg, 1, appservice_id="gone")
    with pytest.raises(OutboxMissingError):
        await redriven(db, letter, appservice_id="gone")
    assert await buried(pg) == 1


async def test_what_is_no_item_stays(pg: Connection, db: Database, intake: Intake) -> None:
    some = [
        await set_aside(pg, 1, redrivable=False, payload=b"{"),
        await set_aside(pg, 2, kind="device_list", redrivable=False, payload=b"", user=None),
        await set_aside(pg, 3, kind="device_list", redrivable=False, payload=b""),
        await set_aside(pg, 4, kind="signatures", redrivable=False, payload=b"{}"),
        await set_aside(pg, 5, kind="transaction", payload=b"{}"),
    ]
    assert await redriven(db, *some) == 0
    assert await buried(pg) == 5
    assert await waiting(pg) == []


async def test_a_letter_whose_device_was_deleted_since_reaches_nobody_not_even_its_namesake(
    pg: Connection, db: Database, intake: Intake
) -> None:
    letter = await set_aside(pg, 1)
    other = await set_aside(pg, 2, device="OTHER")
    await deleted(pg)
    await intake.consume_once()
    await pg.execute("delete from appservice_bridge.deleted_device")  # all before it is sealed
    assert await redriven(db, letter, other) == 1
    assert await waiting(pg) == [2]
    async with db.transaction() as conn:
        left = await letters.find(conn, letter)
    assert not left.redrivable
    assert operating.why_not(left).endswith("refused; its device was deleted since")


async def test_a_letter_buried_while_its_device_is_being_deleted_stays(
    pg: Connection, db: Database, intake: Intake
) -> None:
    await deleted(pg)
    await intake.consume_once()
    letter = await set_aside(pg, 1)
    assert await redriven(db, letter) == 0
    assert await buried(pg) == 1


async def test_a_deletion_that_is_captured_and_not_routed_yet_drops_what_is_redriven(
    pg: Connection, db: Database, intake: Intake
) -> None:
    letter = await set_aside(pg, 1)
    await deleted(pg)
    assert await redriven(db, letter) == 1
    await intake.consume_once()
    async with db.transaction() as conn:
        assert await outbox.drop_deleted(conn, "bot", after=0, max_items=10) == 1


async def test_after_its_ack_a_redriven_message_leaves_the_inbox_under_its_own_key_alone(
    pg: Connection, db: Database, intake: Intake
) -> None:
    await redriven(db, await set_aside(pg, 7))
    await pg.execute("update appservice_bridge.lane set acked_to = 1")
    await purge_once(db, asyncio.Event(), Retention(cleaned={"bot"}))
    rows = await pg.fetch(
        "select user_id, device_id, stream_id from appservice_bridge.inbox_delivered"
    )
    assert [tuple(row) for row in rows] == [(BOT, "DEV", 7)]


async def test_what_is_sealed_is_not_touched(pg: Connection, db: Database, intake: Intake) -> None:
    for n in (1, 2):
        await capture(pg, BOT, n)
    await intake.consume_once()
    sealed = "select position, payload from appservice_bridge.outbox where position <= 2"
    lane = "select sealed_to, acked_to, next_number, epoch from appservice_bridge.lane"
    await pg.execute("update appservice_bridge.lane set sealed_to = 2")
    before = await pg.fetch(sealed), await pg.fetchrow(lane)
    await redriven(db, await set_aside(pg, 3))
    assert (await pg.fetch(sealed), await pg.fetchrow(lane)) == before


@pytest.mark.parametrize(
    ("known", "told"),
    [
        ("insert into appservice_bridge.membership_cursor (settled) values (1)", "left"),
        ("select 1", "changed"),  # nobody follows who shares rooms with whom
    ],
)
async def test_of_a_user_it_is_told_again_what_holds_now(
    pg: Connection, db: Database, intake: Intake, known: str, told: str
) -> None:
    await pg.execute(known)
    await pg.execute("insert into appservice_bridge.tracked values ('bot', '@t:example.org')")
    some = [
        await set_aside(pg, 0, kind="device_list", redrivable=False, user=user, device=None)
        for user in ("@t:example.org", "@t:example.org", "@u:example.org")
    ]
    assert await redriven(db, *some) == 3
    rows = await pg.fetch("select user_id, change from appservice_bridge.device_list_update")
    assert {tuple(row) for row in rows} == {("@t:example.org", "changed"), ("@u:example.org", told)}
    assert await buried(pg) == 0


async def test_of_a_user_who_waits_anyway_the_newer_is_told(
    pg: Connection, db: Database, intake: Intake
) -> None:
    await pg.execute(
        "insert into appservice_bridge.device_list_update (appservice_id, user_id, change)"
        " values ('bot', '@t:example.org', 'left')"
    )
    user = "@t:example.org"
    letter = await set_aside(pg, 0, kind="device_list", redrivable=False, user=user, device=None)
    assert await redriven(db, letter) == 1
    change = await pg.fetchval("select change from appservice_bridge.device_list_update")
    assert change == "left"


async def test_the_keys_of_a_device_wait_again_and_of_one_that_is_gone_nothing_does(
    pg: Connection, db: Database, intake: Intake
) -> None:
    await pg.execute(
        "insert into appservice_bridge.device_key_state"
        " (appservice_id, user_id, device_id, waiting, recount) values ('bot', $1, 'DEV', false,"
        " true)",
        BOT,
    )
    some = [
        await set_aside(pg, 0, kind="device_keys", redrivable=False, device=device)
        for device in ("DEV", "GONE")
    ]
    assert await redriven(db, *some) == 1
    rows = await pg.fetch("select device_id, waiting from appservice_bridge.device_key_state")
    assert [tuple(row) for row in rows] == [("DEV", True)]
    assert await buried(pg) == 1


async def test_discarded_letters_are_gone_and_counted(
    pg: Connection, db: Database, intake: Intake
) -> None:
    some = [UUID(await set_aside(pg, n)) for n in (1, 2, 3)]
    assert await operating.discard(db, "bot", some[:2], by=BY) == set(some[:2])
    assert await operating.discard(db, "bot", some[:2], by=BY) == set()
    assert await ledger(pg) == {"discarded": 2}
    assert await operating.all_of(db, "bot") == some[2:]


async def test_a_letter_is_found_by_the_beginning_that_is_its_own(
    pg: Connection, db: Database
) -> None:
    for last in ("a0000000-0000", "ab000000-0000", "b0000000-0000"):
        await pg.execute(
            "insert into appservice_bridge.dead_letter (appservice_id, dead_letter_id, kind,"
            " reason) values ('bot', $1, 'event', 'r')",
            UUID(last + "-4000-8000-000000000000"),
        )
    async with db.transaction() as conn:
        assert (await letters.find(conn, "B")).short_id == "b0000000"
        assert (await letters.find(conn, "ab000000-0000-4000")).short_id == "ab000000"
        with pytest.raises(letters.AmbiguousDeadLetterError):
            await letters.find(conn, "a")
        for nobody in ("c", "", "zz", "a%", "-", "a" * 37):
            with pytest.raises(letters.NoDeadLetterError):
                await letters.find(conn, nobody)
