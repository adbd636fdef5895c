"""Who shares a room with an appservice's users: `changed`, `left`, and nothing too late."""

import asyncio

import asyncpg
import pytest

from appservice_bridge.domain.owners import Owners
from appservice_bridge.routing.following import follow_once
from appservice_bridge.routing.seeding import OtherRegistrationsError, Seeding
from appservice_bridge.sources import membership_follower
from appservice_bridge.sources.membership_follower import run_membership_follower
from appservice_bridge.storage import membership_stream
from appservice_bridge.storage.database import Connection as Conn
from appservice_bridge.storage.database import Database, DatabaseUnavailableError
from tests.support.facts import Connection
from tests.support.intake import registered
from tests.support.memberships import Memberships, begin, memberships, residents, told, tracked

CURSOR = "select settled, recent from appservice_bridge.membership_cursor"
BOT = registered(("bot", "@b_.*"))


@pytest.fixture
async def rooms(pg: Connection, database: str, db: Database) -> Memberships:
    """A homeserver with nobody in any room, and appservice `bot` with users @b_*."""
    made = await memberships(pg, database)
    await begin(db, BOT)
    return made


async def follow(db: Database, owners: Owners = BOT) -> None:
    while not (await follow_once(db, owners)).done:
        pass


async def test_case_28_the_appservices_user_joins_a_room_and_hears_of_all_who_are_new_to_it(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await rooms.change("!1", alice="join", b_1="join")
    await follow(db)
    assert await told(pg) == {"alice": "changed"}
    await rooms.change("!2", alice="join", carol_at_far="join", dan="leave", eve="invite")
    await follow(db)
    assert await told(pg) == {}
    await rooms.change("!2", b_2="join")
    await follow(db)
    assert await told(pg) == {"carol_at_far": "changed"}
    assert await tracked(pg) == {"alice", "carol_at_far"}
    assert await residents(pg) == {("!1", "b_1"), ("!2", "b_2")}


async def test_case_28_a_user_joins_a_room_that_the_appservice_is_in_and_has_changed(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await rooms.change("!1", b_1="join")
    await rooms.change("!1", alice="invite")
    await follow(db)
    assert await told(pg) == {}
    await rooms.change("!1", alice="join")
    await follow(db)
    assert await told(pg) == {"alice": "changed"}


async def test_a_user_joins_a_second_shared_room_and_has_changed_again(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await rooms.change("!1", b_1="join", alice="join")
    await rooms.change("!2", b_1="join")
    await follow(db)
    assert await told(pg) == {"alice": "changed"}
    await rooms.change("!2", alice="join")
    await follow(db)
    assert await told(pg) == {"alice": "changed"}


async def test_a_change_of_profile_is_nothing(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await rooms.change("!1", b_1="join", alice="join")
    await follow(db)
    await told(pg)
    await rooms.change("!1", alice="join", b_1="join")
    await follow(db)
    assert await told(pg) == {}


async def test_who_should_be_tracked_and_is_not_is_told_with_the_next_change_of_any_kind(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await rooms.change("!1", b_1="join", alice="join")
    await follow(db)
    await told(pg)
    await pg.execute("delete from appservice_bridge.tracked")
    await rooms.change("!1", alice="join")
    await follow(db)
    assert await told(pg) == {"alice": "changed"}


@pytest.mark.parametrize("how", ["leave", "ban"])
@pytest.mark.parametrize("who", ["alice", "b_1"])
async def test_case_28_the_last_shared_room_is_left_by_either_side(
    pg: Connection, db: Database, rooms: Memberships, how: str, who: str
) -> None:
    await rooms.change("!1", b_1="join", alice="join")
    await rooms.change("!2", b_1="join", alice="join")
    await follow(db)
    await told(pg)
    await rooms.change("!1", **{who: how})
    await follow(db)
    assert await told(pg) == {}
    assert await tracked(pg) == {"alice"}
    await rooms.change("!2", **{who: how})
    await follow(db)
    assert await told(pg) == {"alice": "left"}
    assert await tracked(pg) == set()


async def test_case_28_the_server_leaves_and_all_who_were_there_have_left(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await rooms.change("!1", b_1="join", alice_at_far="join", carol_at_far="join")
    await rooms.change("!2", b_2="join", carol_at_far="join")
    await follow(db)
    await told(pg)
    await rooms.server_leaves("!1")
    await follow(db)
    assert await told(pg) == {"alice_at_far": "left"}
    assert await residents(pg) == {("!2", "b_2")}


async def test_one_of_two_users_of_the_appservice_leaves_and_nothing_is_told(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await rooms.change("!1", b_1="join", b_2="join", alice="join")
    await follow(db)
    await told(pg)
    await rooms.change("!1", b_1="leave")
    await follow(db)
    assert await told(pg) == {}
    assert await tracked(pg) == {"alice"}


async def test_case_28_leave_and_rejoin_in_one_batch_is_changed_only(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await rooms.change("!1", b_1="join", alice="join")
    await follow(db)
    await told(pg)
    await rooms.change("!1", alice="leave")
    await rooms.change("!1", alice="join")
    await follow(db)
    assert await told(pg) == {"alice": "changed"}


async def test_the_appservices_user_leaves_and_rejoins_in_one_batch_and_nothing_is_told(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await rooms.change("!1", b_1="join", alice="join")
    await follow(db)
    await told(pg)
    await rooms.change("!1", b_1="leave")
    await rooms.change("!1", b_1="join")
    await follow(db)
    assert await told(pg) == {}


async def test_case_28_two_appservices_each_hear_their_own_and_of_each_others_users(
    pg: Connection, database: str, db: Database
) -> None:
    two = registered(("bot", "@b_.*|@both_.*"), ("irc", "@i_.*|@both_.*"))
    rooms = await memberships(pg, database)
    await begin(db, two)
    await rooms.change("!1", b_1="join", alice="join")
    await rooms.change("!2", i_1="join", carol="join")
    await follow(db, two)
    assert await told(pg, "bot") == {"alice": "changed"}
    assert await told(pg, "irc") == {"carol": "changed"}
    await rooms.change("!1", i_1="join", both_1="join")
    await follow(db, two)
    assert await told(pg, "bot") == {"i_1": "changed"}
    assert await told(pg, "irc") == {"alice": "changed", "b_1": "changed"}
    await rooms.change("!1", b_1="leave", both_1="leave")
    await follow(db, two)
    assert await told(pg, "bot") == {"alice": "left", "i_1": "left"}
    assert await told(pg, "irc") == {"b_1": "left"}


async def test_an_appservice_without_encryption_tracks_nobody_and_forgets_whom_it_tracked(
    pg: Connection, database: str, db: Database, rooms: Memberships
) -> None:
    await rooms.change("!1", b_1="join", alice="join")
    await follow(db)
    assert await tracked(pg) == {"alice"}
    off = Owners(BOT.registrations.values(), server_name="example.org", encrypted=set())
    await begin(db, off)
    await rooms.change("!2", b_1="join", carol="join")
    await follow(db, off)
    assert (await tracked(pg), await residents(pg), await told(pg)) == (set(), set(), {})


async def test_users_of_other_servers_are_never_the_appservices_own(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await rooms.change("!1", b_1_at_far="join", alice="join")
    await follow(db)
    assert await residents(pg) == set()
    await rooms.change("!1", b_1="join")
    await follow(db)
    assert await told(pg) == {"b_1_at_far": "changed", "alice": "changed"}


async def test_the_appservices_own_users_are_never_tracked(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await rooms.change("!1", b_1="join", b_2="join", bot_bot="join")
    await follow(db)
    assert (await tracked(pg), await told(pg)) == (set(), {})


async def test_what_was_followed_already_does_no_harm_when_it_is_followed_again(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await rooms.change("!1", b_1="join", alice="join", carol="join")
    await rooms.change("!1", carol="leave")
    await follow(db)
    await told(pg)
    await pg.execute("update appservice_bridge.membership_cursor set settled = 0, recent = '{}'")
    await follow(db)
    assert await told(pg) == {"alice": "changed"}
    assert await tracked(pg) == {"alice"}


async def test_what_commits_late_below_the_bound_of_others_is_followed_once(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await rooms.change("!1", b_1="join")
    async with rooms.late("!1", alice="join"):
        await rooms.change("!2", b_1="join", carol="join")
        await follow(db)
        assert await told(pg) == {"carol": "changed"}
        assert tuple(await pg.fetchrow(CURSOR) or ()) == (1, [3])
    await follow(db)
    assert await told(pg) == {"alice": "changed"}
    assert tuple(await pg.fetchrow(CURSOR) or ()) == (3, [])


async def test_rows_above_the_bound_are_followed_at_once(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await rooms.position("idle_writer", 0)
    await rooms.change("!1", b_1="join", alice="join")
    await follow(db)
    assert await told(pg) == {"alice": "changed"}


async def test_an_idle_second_writer_holds_the_cursor_back_for_a_minute_and_no_longer(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await rooms.position("idle_writer", 0)
    await rooms.change("!1", b_1="join", alice="join")
    await follow(db)
    await rooms.change("!1", carol="join")
    await follow(db)
    assert tuple(await pg.fetchrow(CURSOR) or ()) == (0, [1, 2])
    await pg.execute(
        "update appservice_bridge.membership_cursor set noted_at = noted_at - interval '61 s'"
    )
    await follow(db)
    assert tuple(await pg.fetchrow(CURSOR) or ()) == (1, [2])
    await follow(db)
    assert tuple(await pg.fetchrow(CURSOR) or ()) == (1, [2])  # noted a moment ago


async def test_a_commit_of_more_rows_than_a_batch_is_followed_whole(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    people = {f"p{n}": "join" for n in range(5)}
    await rooms.change("!1", b_1="join", **people)
    await follow(db)
    assert await tracked(pg) == set(people)
    await rooms.change("!1", **dict.fromkeys(people, "leave"))
    await rooms.change("!1", late="join")
    assert not (await follow_once(db, BOT, limit=2)).done
    assert tuple(await pg.fetchrow(CURSOR) or ()) == (2, [])
    assert await tracked(pg) == set()
    await follow(db)
    assert await tracked(pg) == {"late"}


async def test_of_two_workers_one_follows_and_the_other_does_nothing(
    pg: Connection, database: str, db: Database, rooms: Memberships
) -> None:
    await rooms.change("!1", b_1="join", alice="join")
    other = await asyncpg.connect(database)
    async with other.transaction():
        await other.execute("select from appservice_bridge.membership_cursor for update")
        assert (await follow_once(db, BOT)).told == frozenset()
        assert await tracked(pg) == set()
    await other.close()
    assert (await follow_once(db, BOT)).told == {"bot"}


async def test_two_workers_at_once_follow_everything_and_nothing_wrong(
    pg: Connection, database: str, db: Database, rooms: Memberships
) -> None:
    async with Database.open(database) as second:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for each in (db, second):
                wake = asyncio.Event()
                follower = run_membership_follower(
                    each, BOT, stop, wake=wake, on_told=lambda _ids: None
                )
                group.create_task(follower)
            await rooms.change("!1", b_1="join")
            for n in range(60):
                await rooms.change("!1", **{f"p{n}": "join"})
                if n % 2:
                    await rooms.change("!1", **{f"p{n}": "leave"})
            async with asyncio.timeout(60):
                while await tracked(pg) != {f"p{n}" for n in range(0, 60, 2)}:
                    await asyncio.sleep(0.05)
            stop.set()
    heard = await told(pg)
    assert {name for name, change in heard.items() if change == "changed"} == {
        f"p{n}" for n in range(0, 60, 2)
    }  # whoever came and went within one pass, nobody heard of


async def test_a_worker_with_other_registrations_than_the_last_that_started_follows_nothing(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await rooms.change("!1", b_1="join", alice="join")
    other = registered(("bot", "@alice.*"))
    assert (await follow_once(db, other)).told == frozenset()
    assert await residents(pg) == set()
    with pytest.raises(OtherRegistrationsError):
        await Seeding(db, other, ["bot"]).run()


async def test_dying_between_reading_and_the_commit_leaves_everything_as_it_was(
    pg: Connection, db: Database, rooms: Memberships, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rooms.change("!1", b_1="join", alice="join")
    await follow(db)
    before = tuple(await pg.fetchrow(CURSOR) or ())
    await told(pg)
    await rooms.change("!1", alice="leave", carol="join")

    async def die(conn: Conn, *_: object) -> None:
        pid = conn.get_server_pid()
        await pg.execute("select pg_terminate_backend($1)", pid)
        await conn.execute("select 1")

    with monkeypatch.context() as patched:
        patched.setattr(membership_stream, "move_cursor", die)
        with pytest.raises(DatabaseUnavailableError):
            await follow_once(db, BOT)
    assert await told(pg) == {}
    assert await tracked(pg) == {"alice"}
    assert tuple(await pg.fetchrow(CURSOR) or ()) == before
    await follow(db)
    assert await told(pg) == {"alice": "left", "carol": "changed"}


async def test_a_tracked_user_whose_change_is_being_routed_is_told_as_left_in_the_end(
    pg: Connection, database: str, db: Database, rooms: Memberships
) -> None:
    """Intake holds the row while it writes `changed`; the follower's `left` comes after it."""
    await rooms.change("!1", b_1="join", alice="join")
    await follow(db)
    await told(pg)
    await rooms.change("!1", alice="leave")
    intake = await asyncpg.connect(database)
    async with intake.transaction():
        await intake.execute("select from appservice_bridge.tracked for key share")
        following = asyncio.create_task(follow(db))
        await asyncio.sleep(0.3)
        assert not following.done()
        await intake.execute(
            "insert into appservice_bridge.device_list_update (appservice_id, user_id, change)"
            " values ('bot', '@alice:example.org', 'changed')"
        )
    await following
    await intake.close()
    assert await told(pg) == {"alice": "left"}


async def test_what_is_told_waits_again_though_it_is_in_a_transaction_already(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await rooms.change("!1", b_1="join", alice="join")
    await follow(db)
    await pg.execute("update appservice_bridge.device_list_update set sealed_in = 7")
    await rooms.change("!1", alice="leave")
    await follow(db)
    rows = await pg.fetch("select change, sealed_in from appservice_bridge.device_list_update")
    assert [tuple(row) for row in rows] == [("left", None)]


async def test_the_follower_looks_when_it_is_woken_and_says_whose_lanes_have_work(
    pg: Connection, db: Database, rooms: Memberships, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership_follower, "POLL_SECONDS", 600.0)
    stop, wake = asyncio.Event(), asyncio.Event()
    heard: asyncio.Queue[object] = asyncio.Queue()
    follower = asyncio.create_task(
        run_membership_follower(db, BOT, stop, wake=wake, on_told=heard.put_nowait)
    )
    await asyncio.sleep(0.3)
    await rooms.change("!1", b_1="join", alice="join")
    wake.set()
    assert await asyncio.wait_for(heard.get(), 60) == {"bot"}
    stop.set()
    wake.set()
    await asyncio.wait_for(follower, 60)
