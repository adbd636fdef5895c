"""What following cannot hear of is found when what is kept is held against what holds."""

import asyncio

import pytest

from appservice_bridge.routing.following import follow_once
from appservice_bridge.routing.sweeping import Swept, sweep_once
from appservice_bridge.sources import membership_follower
from appservice_bridge.sources.membership_follower import run_membership_follower
from appservice_bridge.storage.database import Database
from tests.support.facts import Connection
from tests.support.intake import registered
from tests.support.memberships import Memberships, begin, memberships, residents, told, tracked

BOT = registered(("bot", "@b_.*"))


@pytest.fixture
async def rooms(pg: Connection, database: str, db: Database) -> Memberships:
    """The bot's users are in three rooms with people, and all of that was told."""
    made = await memberships(pg, database)
    await begin(db, BOT)
    await made.change("!1", b_1="join", b_2="join", alice="join", bob="join")
    await made.change("!2", b_1="join", bob="join")
    await made.change("!3", b_3="join", carol="join")
    while not (await follow_once(db, BOT)).done:
        pass
    await told(pg)
    return made


async def purge(pg: Connection, room_id: str) -> None:
    """As Synapse does by force: no change of membership is left to read."""
    for table in ("current_state_events", "current_state_delta_stream", "room_memberships"):
        await pg.execute(f"delete from public.{table} where room_id = $1", room_id)


async def test_case_28_who_was_in_a_room_that_was_purged_by_force_has_left(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await purge(pg, "!1")
    await purge(pg, "!3")
    assert (await follow_once(db, BOT)).told == frozenset()
    assert len(await residents(pg)) == 4
    assert (await sweep_once(db, BOT, Swept())).told == {"bot"}
    assert await told(pg) == {"alice": "left", "carol": "left"}
    assert await residents(pg) == {("!2", "b_1")}
    assert await tracked(pg) == {"bob"}
    assert (await sweep_once(db, BOT, Swept())).told == frozenset()


async def test_a_sweep_goes_on_where_the_last_one_ended_and_begins_again(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    for room_id in ("!1", "!2", "!3"):
        await purge(pg, room_id)
    swept, heard = Swept(), dict[str, str]()
    for _ in range(5):
        swept = await sweep_once(db, BOT, swept, size=1)
        heard |= await told(pg)
    assert heard == dict.fromkeys(["alice", "bob", "carol"], "left")
    assert (await residents(pg), await tracked(pg)) == (set(), set())
    assert swept == Swept()


async def test_what_waits_to_be_followed_is_followed_first(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    """Else who moves with somebody from room to room would have left in between."""
    await purge(pg, "!3")
    await rooms.change("!4", b_1="join", bob="join")
    await rooms.change("!1", b_1="leave", b_2="leave")
    await rooms.change("!2", b_1="leave")
    before = Swept()
    assert await sweep_once(db, BOT, before) == before
    assert await told(pg) == {}
    while not (await follow_once(db, BOT)).done:
        pass
    await sweep_once(db, BOT, before)
    assert (await told(pg))["carol"] == "left"
    assert "bob" in await tracked(pg)


async def test_only_who_holds_the_cursor_sweeps(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await purge(pg, "!1")
    async with pg.transaction():
        await pg.execute("select from appservice_bridge.membership_cursor for update")
        assert await sweep_once(db, BOT, Swept()) == Swept()
    other = registered(("bot", "@other_.*"))
    assert await sweep_once(db, other, Swept()) == Swept()
    assert await told(pg) == {}


async def test_a_worker_sweeps_by_itself(
    pg: Connection, db: Database, rooms: Memberships, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership_follower, "SWEEP_SECONDS", 0.2)
    await purge(pg, "!1")
    woken: list[str] = []
    stop = asyncio.Event()
    running = asyncio.create_task(
        run_membership_follower(db, BOT, stop, wake=asyncio.Event(), on_told=woken.extend)
    )
    async with asyncio.timeout(30):
        while not woken:
            await asyncio.sleep(0.05)
    stop.set()
    await running
    assert await told(pg) == {"alice": "left"}
