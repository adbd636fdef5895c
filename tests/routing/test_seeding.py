"""First contact: an appservice is told of everyone it shares rooms with, and of all its devices."""

import pytest

from appservice_bridge.routing import seeding
from appservice_bridge.routing.announcing import announce, go_live
from appservice_bridge.routing.following import begin_following, follow_once
from appservice_bridge.routing.seeding import Seeded, Seeding
from appservice_bridge.storage.database import Database
from tests.support.facts import Connection
from tests.support.intake import registered
from tests.support.memberships import (
    Memberships,
    begin,
    memberships,
    residents,
    told,
    tracked,
    user,
)

BOT = registered(("bot", "@b_.*"))
KEYS = "select user_id, device_id, waiting, recount from appservice_bridge.device_key_state"


@pytest.fixture
async def rooms(pg: Connection, database: str) -> Memberships:
    """Rooms from before the bridge."""
    made = await memberships(pg, database)
    await made.change("!1", b_1="join", alice="join", b_2="leave")
    await made.change("!2", b_2="join", carol_at_far="join", dan="invite")
    await made.change("!3", alice="join", eve="join")
    return made


async def device(pg: Connection, name: str, device_id: str, *, hidden: bool = False) -> None:
    await pg.execute(
        "insert into public.devices (user_id, device_id, hidden) values ($1, $2, $3)",
        *(user(name), device_id, hidden),
    )


async def test_case_30_first_contact_tells_of_everyone_and_of_all_visible_devices(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await device(pg, "b_1", "ONE")
    await device(pg, "b_1", "CROSS", hidden=True)
    await device(pg, "bot_bot", "SENDERS")  # who need not be among the users
    await device(pg, "alice", "HERS")
    assert await begin(db, BOT) == Seeded(changed=2, devices=2)
    assert await told(pg) == dict.fromkeys(("alice", "carol_at_far"), "changed")
    assert await residents(pg) == {("!1", "b_1"), ("!2", "b_2")}
    assert {tuple(row) for row in await pg.fetch(KEYS)} == {
        ("@b_1:example.org", "ONE", True, True),
        ("@bot_bot:example.org", "SENDERS", True, True),
    }


async def test_a_start_with_nothing_new_tells_of_nothing(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await begin(db, BOT)
    await told(pg)
    assert await begin(db, BOT) == Seeded()
    assert await told(pg) == {}


async def test_what_changed_before_the_first_contact_is_not_followed_again(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await begin(db, BOT)
    await told(pg)
    await follow_once(db, BOT)
    assert await told(pg) == {}
    await rooms.change("!1", eve="join")
    await follow_once(db, BOT)
    assert await told(pg) == {"eve": "changed"}


async def test_where_a_second_writer_has_been_idle_for_years_the_past_is_not_followed_either(
    pg: Connection, db: Database, rooms: Memberships, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appservice_bridge.storage.membership_stream.MOST_RECENT", 2)
    await rooms.position("idle_writer", 0)
    await begin(db, BOT)
    settled = await pg.fetchval("select settled from appservice_bridge.membership_cursor")
    assert settled == 2  # of three


async def test_an_appservice_that_was_live_before_memberships_were_followed_is_told_of_all(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await go_live(db, await announce(db, BOT, epoch="test"))
    assert await begin(db, BOT) == Seeded(changed=2)


async def test_other_namespaces_leave_no_stale_resident_and_tell_who_left(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await begin(db, BOT)
    await told(pg)
    assert await begin(db, registered(("bot", "@b_1.*|@alice.*"))) == Seeded(changed=1, left=1)
    assert await residents(pg) == {("!1", "b_1"), ("!1", "alice"), ("!3", "alice")}
    assert await tracked(pg) == {"eve"}


async def test_an_appservice_that_is_withdrawn_is_forgotten_but_for_what_is_sealed(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await device(pg, "b_1", "ONE")
    await begin(db, BOT)
    await pg.execute(
        "update appservice_bridge.device_list_update set sealed_in = 1"
        " where user_id = '@alice:example.org'"
    )
    await begin(db, registered(("irc", "@i_.*")))
    assert (await tracked(pg), await residents(pg)) == (set(), set())
    assert await pg.fetch(KEYS) == []
    assert await told(pg) == {"alice": "changed"}
    assert await begin(db, BOT) == Seeded(changed=2, devices=1)


async def test_a_start_that_died_in_the_midst_of_it_is_made_up_for(
    pg: Connection, db: Database, rooms: Memberships, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(*_: object) -> None:
        raise KeyboardInterrupt

    for step in ("_begin", "_track_members", "_tell_users", "_tell_devices"):
        with monkeypatch.context() as patched:
            patched.setattr(Seeding, step, die)
            with pytest.raises(KeyboardInterrupt):
                await begin(db, BOT)
        assert not await pg.fetchval("select live_at is not null from appservice_bridge.appservice")
    await told(pg)
    assert (await begin(db, BOT)).changed == 2
    assert set(await told(pg)) == {"alice", "carol_at_far"}


async def test_pages_of_any_size_tell_the_same(
    pg: Connection, db: Database, rooms: Memberships, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b_1", "b_2", "b_3"):
        await device(pg, name, "DEV")
    await pg.execute("insert into public.users (name) values ('@b_3:example.org')")
    monkeypatch.setattr(seeding, "PAGE", 1)
    monkeypatch.setattr(seeding, "PAGE_OF_ROOMS", 1)
    assert await begin(db, BOT) == Seeded(changed=2, devices=3)
    assert await residents(pg) == {("!1", "b_1"), ("!2", "b_2")}


async def test_resync_tells_again_and_corrects_what_is_wrong(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await begin(db, BOT)
    await told(pg)
    await pg.execute(
        "insert into appservice_bridge.tracked values ('bot', '@zed:example.org');"
        "delete from appservice_bridge.tracked where user_id = '@alice:example.org';"
        "insert into appservice_bridge.resident values ('bot', '!9', '@b_1:example.org')"
    )
    assert await Seeding(db, BOT, ["bot"]).run() == Seeded(changed=2, left=1)
    assert await told(pg) == {"alice": "changed", "carol_at_far": "changed", "zed": "left"}
    assert await residents(pg) == {("!1", "b_1"), ("!2", "b_2")}


async def test_of_two_who_begin_at_once_one_does(
    pg: Connection, db: Database, rooms: Memberships
) -> None:
    await begin_following(db)
    await begin_following(db)
    assert await pg.fetchval("select count(*) from appservice_bridge.membership_cursor") == 1
