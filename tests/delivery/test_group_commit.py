"""Lanes that are ready share a commit, and what one of them brings is none of the others' business.

The lanes here are held by the test; who sends and what is lost when a process dies is tested with
real workers in the files beside this one.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from appservice_bridge.delivery import sealing
from appservice_bridge.delivery.building import build_ahead
from appservice_bridge.delivery.group_commit import GroupCommit
from appservice_bridge.delivery.lanes import CONNECTIONS, CONNECTIONS_OF_FAILING
from appservice_bridge.domain.policy import DeliveryPolicy
from appservice_bridge.routing.intake import Intake
from appservice_bridge.storage import lanes, leases, sealed
from appservice_bridge.storage.database import (
    MOST_STATEMENTS,
    MOST_TRANSACTIONS,
    Database,
    DatabaseUnavailableError,
)
from appservice_bridge.storage.lanes import Place
from appservice_bridge.storage.leases import Lease
from appservice_bridge.storage.sealed import Sealed
from appservice_bridge.storage.turns import Following, Turn, Turned
from tests.support.facts import Connection, capture, wait_until

POLICY = DeliveryPolicy()
ME = UUID(int=1)
LANES = "appservice_bridge.lane"
IN_FLIGHT = "select array_agg(number order by number) from appservice_bridge.sealed"
COUNTS = (
    "select array_agg(l.appservice_id || ' ' || l.items order by 1)"
    " from appservice_bridge.ledger l where l.outcome = 'delivered'"
)


class Counted(Database):
    """Counts the statements that commit by themselves."""

    commits = 0

    @asynccontextmanager
    async def statement(self) -> AsyncIterator[Any]:
        async with super().statement() as conn:
            self.commits += 1
            yield conn


@pytest.fixture
async def counted(database: str) -> AsyncIterator[Counted]:
    async with Counted.open(database) as db:
        yield db


@pytest.fixture
async def group(counted: Counted) -> AsyncIterator[GroupCommit]:
    one = GroupCommit(counted)
    running = asyncio.create_task(one.run())
    yield one
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def held(db: Database, pg: Connection, names: Sequence[str]) -> dict[str, Lease]:
    """Lanes of appservices that nobody registered, held by this test."""
    for name in names:
        await pg.execute(f"insert into {LANES} (appservice_id, epoch) values ($1, 'e')", name)
        await pg.execute("insert into appservice_bridge.outbox_head values ($1, 0)", name)
    async with db.transaction() as conn:
        await leases.renew(conn, ME, name="me", lease_seconds=60)
        claimed = await leases.claim(conn, ME, list(names), most=len(names))
    return {lease.appservice_id: lease for lease in claimed}


async def put(pg: Connection, name: str, *payloads: bytes) -> None:
    for payload in payloads:
        await pg.execute(
            "with head as (update appservice_bridge.outbox_head set position = position + 1"
            " where appservice_id = $1 returning position)"
            " insert into appservice_bridge.outbox (appservice_id, position, kind, captured_at,"
            " payload) select $1, position, 'event', now(), $2 from head",
            name,
            payload,
        )


async def ahead(db: Database, name: str, number: int = 1, after: int = 0) -> Following:
    following = await build_ahead(db, name, lambda: POLICY, Place("e", number, after))
    assert following is not None
    return following


async def sealed_anew(db: Database, lease: Lease) -> Sealed:
    """As a look at the whole lane seals it."""
    async with db.transaction() as conn:
        owed = await sealing.owed(conn, lease, POLICY, await lanes.hold(conn, lease))
    assert owed is not None
    return owed


async def test_while_a_commit_is_under_way_the_next_ones_gather_for_one(
    pg: Connection, counted: Counted, group: GroupCommit, database: str
) -> None:
    names = [f"a{n}" for n in range(20)]
    ours = await held(counted, pg, names)
    turns = []
    for name in names:
        await put(pg, name, b"{}")
        turns.append(Turn(lease=ours[name], following=await ahead(counted, name)))
    before = counted.commits
    other = await asyncpg.connect(database)
    async with other.transaction():
        await other.execute("lock table appservice_bridge.sealed in share mode")
        first = asyncio.create_task(group.turn(turns[0]))
        await wait_until(pg, "select count(*) > 0 from pg_locks where not granted")
        rest = [asyncio.create_task(group.turn(turn)) for turn in turns[1:]]
        await asyncio.sleep(0)
    await other.close()
    assert await asyncio.gather(first, *rest) == [Turned(acked=False, sealed=True, more=True)] * 20
    assert counted.commits - before == 2
    assert await pg.fetchval("select count(*) from appservice_bridge.sealed") == 20


async def test_an_ack_and_the_next_seal_are_one_commit(
    pg: Connection, counted: Counted, group: GroupCommit
) -> None:
    lease = (await held(counted, pg, ["a"]))["a"]
    await put(pg, "a", b'{"n":1}')
    taken = await sealed_anew(counted, lease)
    await put(pg, "a", b'{"n":2}', b'{"n":3}')
    following = await ahead(counted, "a", number=2, after=1)
    turned = await group.turn(Turn(lease=lease, taken=taken, status=201, following=following))
    assert turned == Turned(acked=True, sealed=True, more=True)
    assert await pg.fetchval(IN_FLIGHT) == [2]
    assert await pg.fetchval(COUNTS) == ["a 1"]
    row = await pg.fetchrow(f"select * from {LANES}")
    assert row is not None
    assert (row["acked_to"], row["sealed_to"], row["next_number"]) == (1, 3, 3)
    assert (row["last_outcome"], row["last_status"]) == ("acked", 201)
    async with counted.transaction() as conn:  # the next process sends the same
        again = await sealed.in_flight(conn, lease)
    assert (again.txn_id, again.body) == (following.sealed.txn_id, following.sealed.body)


async def test_after_the_last_one_nothing_more_is_known_to_wait(
    pg: Connection, counted: Counted, group: GroupCommit
) -> None:
    lease = (await held(counted, pg, ["a"]))["a"]
    await put(pg, "a", b"{}")
    taken = await sealed_anew(counted, lease)
    turned = await group.turn(Turn(lease=lease, taken=taken, status=200))
    assert turned == Turned(acked=True, sealed=False, more=False)


@pytest.mark.parametrize(
    "meanwhile",
    [
        "update {lane} set paused_at = now()",
        "update {lane} set next_number = next_number + 1",
        "update {lane} set sealed_to = sealed_to + 1",
        "update {lane} set epoch = 'f'",
        "update {lane} set due_at = now() + interval '1 hour'",
        (
            "insert into appservice_bridge.device_list_update (appservice_id, user_id, change)"
            " values ('a', '@u:e.org', 'changed')"
        ),
        (
            "insert into appservice_bridge.device_key_state"
            " (appservice_id, user_id, device_id, recount) values ('a', '@u:e.org', 'D', true)"
        ),
        (
            "insert into appservice_bridge.deleted_device (appservice_id, user_id, device_id, upto)"
            " values ('a', '@u:e.org', 'D', 1)"
        ),
        (
            "insert into appservice_bridge.sealed"
            " values ('a', 77, 'other', 1, 1, 1, 2, 1, '{{}}', '{{}}', '')"
        ),
    ],
)
async def test_nothing_is_sealed_where_anything_is_not_as_its_builder_believed(
    pg: Connection, counted: Counted, group: GroupCommit, meanwhile: str
) -> None:
    lease = (await held(counted, pg, ["a"]))["a"]
    await put(pg, "a", b"{}")
    following = await ahead(counted, "a")
    await pg.execute(meanwhile.format(lane=LANES))
    turned = await group.turn(Turn(lease=lease, following=following))
    assert turned is not None
    assert not turned.sealed
    assert await pg.fetchval(f"{IN_FLIGHT} where number < 70") is None


async def test_who_lost_the_lane_commits_nothing_and_its_neighbour_does(
    pg: Connection, counted: Counted, group: GroupCommit
) -> None:
    ours = await held(counted, pg, ["a", "b"])
    taken = {}
    for name in ours:
        await put(pg, name, b"{}")
        taken[name] = await sealed_anew(counted, ours[name])
    await pg.execute(f"update {LANES} set lease_token = lease_token + 1 where appservice_id = 'a'")
    turns = [Turn(lease=ours[name], taken=taken[name], status=200) for name in ours]
    lost, kept = await asyncio.gather(*map(group.turn, turns))
    assert lost is None
    assert kept == Turned(acked=True, sealed=False, more=False)
    left = "select array_agg(appservice_id) from appservice_bridge.sealed"
    assert await pg.fetchval(left) == ["a"]
    assert await pg.fetchval(COUNTS) == ["b 1"]


async def test_what_was_acked_already_is_not_acked_again(
    pg: Connection, counted: Counted, group: GroupCommit
) -> None:
    lease = (await held(counted, pg, ["a"]))["a"]
    await put(pg, "a", b"{}", b"{}")
    taken = await sealed_anew(counted, lease)
    turn = Turn(lease=lease, taken=taken, status=200)
    assert (await group.turn(turn)) == Turned(acked=True, sealed=False, more=False)
    assert (await group.turn(turn)) == Turned(acked=False, sealed=False, more=False)
    assert await pg.fetchval(COUNTS) == ["a 2"]


async def test_nobody_waits_for_a_lane_that_somebody_else_works_on(
    pg: Connection, counted: Counted, group: GroupCommit, database: str
) -> None:
    ours = await held(counted, pg, ["a", "b"])
    for name in ours:
        await put(pg, name, b"{}")
    turns = [Turn(lease=ours[n], following=await ahead(counted, n)) for n in ours]
    other = await asyncpg.connect(database)
    async with other.transaction():
        await other.execute(f"select from {LANES} where appservice_id = 'a' for update")
        left_out, sealed_ = await asyncio.gather(*map(group.turn, turns))
    await other.close()
    assert left_out is None
    assert sealed_ == Turned(acked=False, sealed=True, more=True)


async def test_two_leases_of_one_lane_do_not_meet_in_one_statement(
    pg: Connection, counted: Counted, group: GroupCommit
) -> None:
    older = (await held(counted, pg, ["a"]))["a"]
    await put(pg, "a", b"{}")
    await pg.execute(f"update {LANES} set lease_token = lease_token + 1")
    newer = Lease(appservice_id="a", token=older.token + 1)
    following = await ahead(counted, "a")
    turned = await asyncio.gather(
        *(group.turn(Turn(lease=lease, following=following)) for lease in (older, newer))
    )
    assert turned == [None, Turned(acked=False, sealed=True, more=True)]


async def test_who_waits_for_a_commit_hears_that_it_failed(
    pg: Connection, counted: Counted, group: GroupCommit, database: str
) -> None:
    ours = await held(counted, pg, ["a", "b"])
    for name in ours:
        await put(pg, name, b"{}")
    turns = [Turn(lease=ours[n], following=await ahead(counted, n)) for n in ours]
    other = await asyncpg.connect(database)
    async with other.transaction():
        await other.execute("lock table appservice_bridge.sealed in share mode")
        waiting = [asyncio.create_task(group.turn(turn)) for turn in turns]
        blocked = "from pg_locks where not granted"
        await wait_until(pg, f"select count(*) > 0 {blocked}")
        await pg.execute(f"select pg_terminate_backend(pid) {blocked}")
        heard = await asyncio.gather(*waiting, return_exceptions=True)
    await other.close()
    assert [type(one) for one in heard] == [DatabaseUnavailableError] * 2
    assert await pg.fetchval(IN_FLIGHT) is None


async def test_who_waits_when_the_worker_ends_hears_of_it(counted: Counted) -> None:
    group = GroupCommit(counted)
    running = asyncio.create_task(group.run())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(group.turn(Turn(lease=Lease(appservice_id="a", token=1))))
    running.cancel()
    with pytest.raises(DatabaseUnavailableError):
        await asyncio.wait_for(waiting, 60)


@pytest.mark.parametrize("what", ["fleeting", "key_only", "gaps"])
async def test_what_has_to_be_looked_at_is_not_built_ahead(
    pg: Connection, counted: Counted, what: str
) -> None:
    await held(counted, pg, ["a"])
    await put(pg, "a", b"{}", b"{}")
    outbox = "update appservice_bridge.outbox set"
    match what:
        case "fleeting":
            await pg.execute(
                f"{outbox} kind = 'ephemeral', fleeting = 'm.typing' where position = 2"
            )
        case "key_only":
            await pg.execute(f"{outbox} kind = 'to_device', payload = '' where position = 2")
        case "gaps":
            await pg.execute(f"{outbox} kind = 'dropped', payload = ''")
    assert await build_ahead(counted, "a", lambda: POLICY, Place("e", 1, 0)) is None


async def test_what_is_built_ahead_is_what_a_look_at_the_lane_would_seal(
    pg: Connection, db: Database, intake: Intake
) -> None:
    for number in range(1, 6):
        await capture(pg, "@b_1:example.org", number)
    await intake.consume_once()
    async with db.transaction() as conn:
        await leases.renew(conn, ME, name="me", lease_seconds=60)
        (lease,) = await leases.claim(conn, ME, ["bot"], most=1)
        state = await lanes.hold(conn, lease)
    built = await build_ahead(db, "bot", lambda: POLICY, state.place)
    owed = await sealed_anew(db, lease)
    assert built is not None
    assert built.sealed == owed


async def test_a_look_that_waited_for_the_lane_sees_what_was_committed_meanwhile(
    pg: Connection, counted: Counted, database: str
) -> None:
    """A turn whose answer was lost may still be at its commit when its lane is looked at again."""
    lease = (await held(counted, pg, ["a"]))["a"]
    await put(pg, "a", b"{}")
    other = await asyncpg.connect(database)

    async def look() -> lanes.LaneState:
        async with counted.transaction() as conn:
            return await lanes.hold(conn, lease)

    async with other.transaction():
        await other.execute(f"update {LANES} set next_number = 2, sealed_to = 1")
        await other.execute(
            "insert into appservice_bridge.sealed"
            " values ('a', 1, 'abe-1', 1, 1, 1, 2, 1, '{}', '{}', '')"
        )
        looking = asyncio.create_task(look())
        await wait_until(pg, "select count(*) > 0 from pg_locks where not granted")
    state = await looking
    await other.close()
    assert (state.next_number, state.in_flight_bytes) == (2, 2)


async def test_a_look_seals_no_item_that_came_with_updates_it_does_not_know_of(
    pg: Connection, counted: Counted
) -> None:
    lease = (await held(counted, pg, ["a"]))["a"]
    await put(pg, "a", b"{}")
    async with counted.transaction() as conn:
        state = await lanes.hold(conn, lease)
        await put(pg, "a", b"{}")
        owed = await sealing.owed(conn, lease, POLICY, state)
    assert owed is not None
    assert owed.items == 1


async def test_no_turn_is_taken_once_the_worker_ends(counted: Counted) -> None:
    group = GroupCommit(counted)
    running = asyncio.create_task(group.run())
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    with pytest.raises(DatabaseUnavailableError):
        await group.turn(Turn(lease=Lease(appservice_id="a", token=1)))


def test_lanes_leave_connections_to_leases_commits_and_intake() -> None:
    lanes_and_who_comes = 2 * CONNECTIONS
    assert lanes_and_who_comes + CONNECTIONS_OF_FAILING + 4 <= MOST_TRANSACTIONS
    assert lanes_and_who_comes + 4 <= MOST_STATEMENTS
