"""Rule 2: nobody is left out because a homeserver's snapshot is older than our list."""

import asyncio
from importlib.resources.abc import Traversable

import asyncpg
import pytest

from appservice_bridge.blueprint.files import schema_directory
from appservice_bridge.routing import announcing
from appservice_bridge.routing.announcing import announce, go_live
from appservice_bridge.routing.intake import Intake
from appservice_bridge.storage import foreign_users, registrations
from appservice_bridge.storage.database import Database
from tests.support.facts import Connection, attach, outbox, send
from tests.support.intake import nobody, registered

LIVE = "select live_at is not null from appservice_bridge.appservice where appservice_id = 'new'"
USER = "@n_1:example.org"


async def an_open_homeserver_transaction(database: str) -> tuple[Connection, object]:
    """A REPEATABLE READ DB transaction, as Synapse's are, whose snapshot is taken."""
    homeserver = await asyncpg.connect(database)
    opened = homeserver.transaction(isolation="repeatable_read")
    await opened.start()
    await homeserver.fetchval("select count(*) from public.users")
    return homeserver, opened


async def test_a_user_registered_while_a_transaction_that_messages_him_is_open_gets_it(
    pg: Connection, database: str, db: Database, intake: Intake
) -> None:
    await attach(pg)
    homeserver, opened = await an_open_homeserver_transaction(database)
    await pg.execute("insert into public.users (name, admin) values ('@b_9:example.org', 0)")
    await send(homeserver, "@b_9:example.org", 1, n=1)
    await opened.commit()  # type: ignore[attr-defined]
    await homeserver.close()
    await intake.consume_once()
    assert await outbox(pg) == [1]


async def test_a_positive_list_of_owned_users_would_silently_capture_nothing(
    pg: Connection, database: str, db: Database, intake: Intake
) -> None:
    """The test above can fail: this is rule 2 broken on purpose."""
    await attach(pg)
    await pg.execute("create table appservice_bridge.owned_user (user_id text primary key)")
    function = schema_directory() / "synapse" / "capture.sql"
    assert isinstance(function, Traversable)
    positive = (
        function.read_text()
        .replace("appservice_bridge.foreign_user f", "appservice_bridge.owned_user f")
        .replace(") is null", ")")
    )
    await pg.execute(positive)
    homeserver, opened = await an_open_homeserver_transaction(database)
    await pg.execute("insert into appservice_bridge.owned_user values ('@b_9:example.org')")
    await send(homeserver, "@b_9:example.org", 1, n=1)
    await opened.commit()  # type: ignore[attr-defined]
    await homeserver.close()
    await intake.consume_once()
    assert await outbox(pg) == []


async def going_live_beside_an_open_transaction(
    pg: Connection, database: str, db: Database
) -> list[object]:
    """A foreign user becomes owned while a DB transaction that messages him is open.

    Returns whether the appservice is live before that ends, and what waits for it in the end.
    """
    await attach(pg)
    await pg.execute("insert into appservice_bridge.foreign_user values ($1)", USER)
    owners = registered(("new", "@n_.*"))
    homeserver, opened = await an_open_homeserver_transaction(database)
    waiting = await announce(db, owners, epoch="test")
    announced = asyncio.create_task(go_live(db, waiting))
    await asyncio.sleep(0.4)
    early = await pg.fetchval(LIVE)
    await send(homeserver, USER, 1, n=1)  # its snapshot still calls him foreign
    await opened.commit()  # type: ignore[attr-defined]
    await homeserver.close()
    await announced
    assert await pg.fetchval(LIVE)
    await send(pg, USER, 2, n=2)
    await Intake(db, owners, nobody).consume_once()
    return [early, await outbox(pg, "new")]


async def test_an_appservice_is_live_only_when_no_older_transaction_is_open(
    pg: Connection, database: str, db: Database
) -> None:
    assert await going_live_beside_an_open_transaction(pg, database, db) == [False, [2]]


async def test_an_appservice_that_did_not_wait_would_be_live_and_miss_a_message(
    pg: Connection, database: str, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: this is rule 2's wait left out on purpose."""
    monkeypatch.setattr(announcing, "LONGEST_DB_TRANSACTION_SECONDS", 0)
    assert await going_live_beside_an_open_transaction(pg, database, db) == [True, [2]]


async def test_it_is_told_of_all_devices_only_when_no_change_of_them_is_left_out_any_more(
    pg: Connection, database: str, db: Database
) -> None:
    await attach(pg)
    told: list[bool] = []

    async def tell_all() -> None:
        told.append(await pg.fetchval(LIVE))

    homeserver, opened = await an_open_homeserver_transaction(database)
    waiting = await announce(db, registered(("new", "@n_.*")), epoch="test")
    announced = asyncio.create_task(go_live(db, waiting, tell_all=tell_all))
    await asyncio.sleep(0.4)
    assert told == []
    await opened.commit()  # type: ignore[attr-defined]
    await homeserver.close()
    await announced
    assert told == [False]  # and dying in it leaves the next start to do it again


async def test_users_of_a_registration_that_comes_back_are_looked_for_again(
    pg: Connection, db: Database
) -> None:
    await go_live(db, await announce(db, registered(("new", "@n_.*")), epoch="test"))
    await go_live(db, await announce(db, registered(), epoch="test"))
    await pg.execute("insert into appservice_bridge.foreign_user values ($1)", USER)
    await go_live(db, await announce(db, registered(("new", "@n_.*")), epoch="test"))
    assert await pg.fetchval("select count(*) from appservice_bridge.foreign_user") == 0


async def test_a_start_that_died_before_going_live_is_made_up_for(
    pg: Connection, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("appservice_bridge.storage.registrations.go_live", die)
        with pytest.raises(KeyboardInterrupt):
            await go_live(db, await announce(db, registered(("new", "@n_.*")), epoch="test"))
    assert await pg.fetchval(LIVE) is False
    await go_live(db, await announce(db, registered(("new", "@n_.*")), epoch="test"))
    assert await pg.fetchval(LIVE) is True


async def test_users_put_down_as_foreign_by_another_config_are_looked_for_at_the_next_start(
    pg: Connection, db: Database
) -> None:
    owners, without = registered(("new", "@n_.*")), registered(("other", "@o_.*"))
    await go_live(db, await announce(db, owners, epoch="test"))
    async with db.transaction() as conn:  # what `install` does under the gate
        await registrations.look_again(conn, without.digest())
        await foreign_users.add(conn, [USER])
    await announce(db, owners, epoch="test")
    assert await pg.fetchval("select count(*) from appservice_bridge.foreign_user") == 0
