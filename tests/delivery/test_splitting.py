"""A transaction's parts: together they are the transaction, and each is sealed like one."""

import json
import random
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from appservice_bridge.delivery import sealing
from appservice_bridge.delivery.splitting import replace_refused
from appservice_bridge.domain.policy import DeliveryPolicy
from appservice_bridge.domain.refusals import Replacement
from appservice_bridge.domain.transaction import AlteredTransactionError, Profile
from appservice_bridge.routing.intake import Intake
from appservice_bridge.storage import lanes, leases, owed, sealed
from appservice_bridge.storage.database import Connection, Database
from appservice_bridge.storage.leases import Lease, LeaseLostError
from appservice_bridge.storage.refused import Answer, Grounds
from appservice_bridge.storage.sealed import Sealed

KINDS = ["event", "ephemeral", "to_device", "dropped"]


async def fill(conn: Connection, seed: int) -> None:
    """Items of all kinds, some of them dropped, in a random order."""
    mixed = random.Random(seed).choices(KINDS, k=random.Random(seed + 1).randrange(2, 60))
    kinds = ["event", *mixed, "to_device", "dropped"]
    await conn.execute(
        "insert into outbox (appservice_id, position, kind, captured_at, payload)"
        " select 'bot', n, k, now(),"
        "        case k when 'dropped' then '' else convert_to('{\"n\":' || n || '}', 'UTF8') end"
        "   from unnest($1::text[]) with ordinality as i(k, n)",
        kinds,
    )
    await conn.execute("update outbox_head set position = $1", len(kinds))
    await conn.execute(
        "insert into device_list_update (appservice_id, user_id, change)"
        " select 'bot', '@u' || n, 'changed' from generate_series(1, 3) n"
    )


async def claimed(db: Database) -> Lease:
    async with db.transaction() as conn:
        worker_id = uuid4()
        await leases.renew(conn, worker_id, name="test", lease_seconds=60)
        (lease,) = await leases.claim(conn, worker_id, ["bot"], most=1)
    return lease


async def seal(db: Database, lease: Lease, policy: DeliveryPolicy) -> Sealed:
    async with db.transaction() as conn:
        found = await sealing.owed(conn, lease, policy, await lanes.hold(conn, lease))
    assert found is not None
    return found


async def parts_of(
    db: Database, lease: Lease, policy: DeliveryPolicy, parent: Sealed, by: Replacement
) -> list[Sealed]:
    """What stands in its place, each as it is read again from its seal and acknowledged."""
    async with db.transaction() as conn:
        await replace_refused(conn, lease, policy, parent, by, None)
        count = await conn.fetchval("select count(*) from sealed")
    parts = []
    for _ in range(count):
        async with db.transaction() as conn:
            parts.append(await sealed.in_flight(conn, lease))
            await sealed.ack(conn, lease, parts[-1], status=200)
    return parts


def fields(one: Sealed) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(one.body)
    return {name: value for name, value in found.items() if value}


@pytest.mark.parametrize("profile", list(Profile))
@pytest.mark.parametrize("seed", range(12))
async def test_parts_concatenated_are_the_transaction(
    db: Database, intake: Intake, seed: int, profile: Profile
) -> None:
    del intake  # it made the lane
    policy = DeliveryPolicy(profile=profile)
    lease = await claimed(db)
    async with db.transaction() as conn:
        await fill(conn, seed)
    whole = await seal(db, lease, policy)
    async with db.transaction() as conn:
        items = await replace_refused(conn, lease, policy, whole, Replacement.UPDATES_LATER, None)
        waiting = await conn.fetchval(
            "select count(*) from device_list_update where sealed_in is null"
        )
    assert items is not None
    assert waiting == 3
    assert (items.items, items.updates) == (whole.items, 0)
    first, second = await parts_of(db, lease, policy, items, Replacement.HALVES)
    joined: dict[str, list[Any]] = {}
    for part in (first, second):
        for name, value in fields(part).items():
            joined.setdefault(name, []).extend(value)
    assert joined == fields(items)
    assert joined.items() <= fields(whole).items()
    assert first.items + second.items == whole.items
    assert (first.first_position, second.last_position) == (1, whole.last_position)
    assert second.first_position == first.last_position + 1
    assert len({whole.txn_id, items.txn_id, first.txn_id, second.txn_id}) == 4
    async with db.transaction() as conn:
        state = await lanes.hold(conn, lease)
    assert state.acked_to == state.sealed_to == whole.last_position


async def test_what_is_told_of_devices_alone_goes_before_the_items_after_it(
    db: Database, intake: Intake
) -> None:
    del intake
    policy, lease = DeliveryPolicy(), await claimed(db)
    async with db.transaction() as conn:
        await fill(conn, 1)
        await conn.execute("update lane set updates_cap = 2")
    alone = await seal(db, lease, policy)
    assert (alone.items, alone.updates) == (0, 2)
    async with db.transaction() as conn:
        following = await sealing.ack_and_seal_next(conn, lease, policy, alone, status=200)
        assert await conn.fetchval("select updates_cap from lane") == 4
    assert following is not None
    assert (following.items, following.updates) == (0, 1)
    async with db.transaction() as conn:
        last = await sealing.ack_and_seal_next(conn, lease, policy, following, status=200)
    assert last is not None
    assert last.items > 0
    assert last.updates == 0


async def test_who_lost_the_lane_splits_nothing(db: Database, intake: Intake) -> None:
    del intake
    policy, late = DeliveryPolicy(), await claimed(db)
    async with db.transaction() as conn:
        await fill(conn, 1)
    whole = await seal(db, late, policy)
    async with db.transaction() as conn:
        await conn.execute("update worker set alive_until = now() - interval '1 hour'")
    await claimed(db)
    with pytest.raises(LeaseLostError):
        async with db.transaction() as conn:
            await replace_refused(conn, late, policy, whole, Replacement.UPDATES_LATER, None)
    async with db.transaction() as conn:
        with pytest.raises(LeaseLostError):
            await sealed.replace(conn, late, whole)
        assert await conn.fetchval("select txn_id from sealed") == whole.txn_id


async def test_what_is_not_what_was_sealed_is_not_sealed_again_in_parts(
    db: Database, intake: Intake, pg: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    del intake
    policy, lease = DeliveryPolicy(), await claimed(db)
    async with db.transaction() as conn:
        await fill(conn, 1)
    whole = await seal(db, lease, policy)
    await pg.execute("update appservice_bridge.outbox set payload = '{}' where position = 1")
    with pytest.raises(AlteredTransactionError):
        async with db.transaction() as conn:
            await replace_refused(conn, lease, policy, whole, Replacement.UPDATES_LATER, None)
    assert await pg.fetchval("select txn_id from appservice_bridge.sealed") == whole.txn_id


async def test_a_word_to_split_is_for_what_is_in_flight_and_for_nothing_sealed_later(
    db: Database, intake: Intake
) -> None:
    del intake
    policy, lease = DeliveryPolicy(), await claimed(db)
    async with db.transaction() as conn:
        await fill(conn, 1)
        await conn.execute("update lane set split_asked_at = now()")
    await seal(db, lease, policy)
    async with db.transaction() as conn:
        assert not (await lanes.hold(conn, lease)).split_asked


async def test_what_is_sealed_is_shown_in_the_order_it_is_sent(
    db: Database, intake: Intake
) -> None:
    del intake
    policy, lease = DeliveryPolicy(), await claimed(db)
    async with db.transaction() as conn:
        await fill(conn, 1)
        await conn.execute("delete from device_list_update")
    whole = await seal(db, lease, policy)
    for _ in range(2):  # the whole, and then its first half, under numbers above the second's
        async with db.transaction() as conn:
            part = await replace_refused(conn, lease, policy, whole, Replacement.HALVES, None)
        assert part is not None
        whole = part
    async with db.transaction() as conn:
        shown = [one.txn_id for one in await owed.owed(conn, "bot")]
    sent: list[str] = []
    while shown[len(sent) :]:
        async with db.transaction() as conn:
            one = await sealed.in_flight(conn, lease)
            await sealed.ack(conn, lease, one, status=200)
        sent.append(one.txn_id)
    assert shown == sent


async def messages(conn: Connection, stream_ids: list[int]) -> None:
    """Messages to one device, from position 1 on."""
    await conn.execute(
        "insert into outbox (appservice_id, position, kind, user_id, device_id, stream_id,"
        "                    captured_at, payload)"
        " select 'bot', n, 'to_device', '@b_1', 'DEV', stream_id, now(), '{}'::text::bytea"
        "   from unnest($1::bigint[]) with ordinality as m(stream_id, n)",
        stream_ids,
    )
    await conn.execute("update outbox_head set position = $1", len(stream_ids))


@pytest.mark.parametrize(
    ("mark", "redrivable"),
    [
        ("upto = 1", True),
        ("upto = 2", False),
        ("inbox_upto = 8, needed_to = 2", True),
        ("inbox_upto = 9, needed_to = 2", False),
        ("inbox_upto = 9, needed_to = 1", True),
    ],
)
async def test_what_was_for_the_next_device_of_a_name_can_be_put_back(
    db: Database, intake: Intake, mark: str, redrivable: bool
) -> None:
    del intake
    policy, lease = DeliveryPolicy(), await claimed(db)
    async with db.transaction() as conn:
        await messages(conn, [8, 9])
        await conn.execute("insert into deleted_device values ('bot', '@b_1', 'DEV', 1)")
    one = await seal(db, lease, policy)
    assert one.items == 1
    async with db.transaction() as conn:
        await conn.execute(f"update deleted_device set {mark}")
        grounds = Grounds(answer=Answer(status=400, errcode=None, text=""))
        await replace_refused(conn, lease, policy, one, Replacement.BURIED_ITEM, grounds)
        assert await conn.fetchval("select redrivable from dead_letter") is redrivable


async def test_case_27_a_seal_empties_what_is_in_the_inbox_up_to_the_mark_and_no_more(
    db: Database, intake: Intake
) -> None:
    """In whatever order they were routed; nor what was sealed, nor what is routed later."""
    del intake
    policy, lease = DeliveryPolicy(max_items=1), await claimed(db)
    whole = DeliveryPolicy()
    async with db.transaction() as conn:
        await messages(conn, [5, 9, 6, 7, 3])
    first = await seal(db, lease, policy)
    async with db.transaction() as conn:
        await conn.execute(
            "insert into deleted_device values ('bot', '@b_1', 'DEV', 0, $1, $2)", 6, 4
        )
        await sealed.ack(conn, lease, first, status=200)
    second = await seal(db, lease, policy)
    async with db.transaction() as conn:  # the mark speaks of more than that
        assert await conn.fetchval("select count(*) from deleted_device") == 1
        await sealed.ack(conn, lease, second, status=200)
    third = await seal(db, lease, whole)
    async with db.transaction() as conn:
        kinds = await conn.fetch("select kind from outbox order by position")
        await sealed.ack(conn, lease, third, status=200)
        assert await sealing.owed(conn, lease, whole, await lanes.hold(conn, lease)) is None
        assert await conn.fetchval("select count(*) from deleted_device") == 0
        dropped = "select items from ledger where outcome = 'dropped'"
        assert await conn.fetchval(dropped) == 1
    assert [row["kind"] for row in kinds] == [
        "to_device",  # 5, sealed before
        "to_device",  # 9, of the new device, though routed first
        "dropped",  # 6
        "to_device",  # 7
        "to_device",  # 3 came behind the mark
    ]
