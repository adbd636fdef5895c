"""`backfill`: what the inbox holds from before the bridge is delivered once, whatever happens."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest
import yaml

from appservice_bridge.cli.context import owners
from appservice_bridge.routing.announcing import announce
from appservice_bridge.routing.intake import Intake
from appservice_bridge.sources.reconciler import reconcile_once
from appservice_bridge.storage import backfill, inbox, synapse
from appservice_bridge.storage.database import Database
from appservice_bridge.storage.repeats import InboxKey
from tests.support.bridge import Files, registration, write_files
from tests.support.command import command
from tests.support.delivered import add_device
from tests.support.facts import Connection, make_synapse_tables, outbox, send
from tests.support.intake import nobody

BOT: Final = "@b_1:example.org"
OTHER: Final = "@b_2:example.org"
SENDER: Final = "@bot_bot:example.org"
TAKEN: Final = "select count(*) from appservice_bridge.taken"


async def settle_at(pg: Connection, stream_id: int) -> None:
    """The homeserver has written its stream up to there."""
    await pg.execute("update public.stream_positions set stream_id = $1", stream_id)


async def write_before_the_bridge(pg: Connection) -> None:
    """Messages 1 to 4, one of them nobody's; and one of a device that was deleted."""
    await make_synapse_tables(pg)
    for user in (BOT, OTHER, SENDER, "@carol:example.org"):
        await add_device(pg, user)
    await send(pg, "@b_gone:example.org", 1, n=0)
    for n, user in enumerate((BOT, "@carol:example.org", OTHER, SENDER, BOT), start=1):
        await send(pg, user, n, n=n)
    await settle_at(pg, 5)


async def attached(pg: Connection, db: Database, files: Files) -> Intake:
    """The capture is installed, and a worker has announced the registrations."""
    await pg.execute("set search_path = appservice_bridge, public")
    await synapse.install(pg)
    await announced(db, files)
    return Intake(db, owners(files.load()), nobody)


async def announced(db: Database, files: Files) -> None:
    await announce(db, owners(files.load()), epoch="test", present=inbox.present)


async def routed(intake: Intake) -> None:
    while not (await intake.consume_once()).done:
        pass


async def forgotten(db: Database) -> None:
    """The floor rises to where the homeserver is, and what is below it is forgotten."""
    for _ in range(3):
        await reconcile_once(db, floor_settle_seconds=0)


def written(directory: Path, database: str, *ids: str, users: Sequence[str] = ("@b_.*",)) -> Files:
    some = [registration(one, "http://127.0.0.1:9", users=users) for one in ids]
    return write_files(directory, database, some, capture="triggers")


@pytest.fixture
def files(tmp_path: Path, database: str) -> Files:
    return written(tmp_path, database, "bot")


async def run(files: Files, *arguments: str) -> tuple[int, str, str]:
    return await command("backfill", *arguments, "--config", str(files.config))


async def test_what_the_inbox_holds_from_before_is_delivered_in_order_behind_what_came_since(
    pg: Connection, db: Database, files: Files
) -> None:
    await write_before_the_bridge(pg)
    intake = await attached(pg, db, files)
    await send(pg, BOT, 6, n=6)
    said = "4 messages of 3 devices {} be delivered\n"
    assert await run(files, "bot", "--dry-run") == (0, said.format("would"), "")
    await routed(intake)
    assert await outbox(pg) == [6]
    assert await run(files, "bot") == (0, said.format("will"), "")
    assert (await run(files, "bot"))[1].startswith("0 messages")  # they wait in the log
    await routed(intake)
    assert await outbox(pg) == [6, 1, 3, 4, 5]
    assert (await run(files, "bot"))[1].startswith("0 messages")
    counted = "select items from appservice_bridge.ledger where outcome = 'backfilled'"
    assert await pg.fetchval(counted) == 4


async def test_rows_are_appended_in_the_order_of_the_stream_however_they_were_found(
    pg: Connection, db: Database
) -> None:
    await make_synapse_tables(pg)
    for n in (1, 2, 3):
        await send(pg, BOT, n, n=n)
    async with db.transaction() as conn:
        assert await backfill.append(conn, [InboxKey(BOT, "DEV", n) for n in (3, 1, 2)]) == 3
    rows = await pg.fetch("select stream_id from appservice_bridge.capture_log order by seq")
    assert [row["stream_id"] for row in rows] == [1, 2, 3]


async def test_it_delivers_once_also_when_what_was_routed_is_forgotten_in_between(
    pg: Connection, db: Database, files: Files
) -> None:
    await write_before_the_bridge(pg)
    intake = await attached(pg, db, files)
    assert (await run(files, "bot"))[0] == 0
    await routed(intake)
    await send(pg, BOT, 6, n=6)
    await settle_at(pg, 6)
    await routed(intake)
    await forgotten(db)
    assert (
        await pg.fetchval(
            "select settled from appservice_bridge.stream_floor where stream = 'to_device'"
        )
        == 6
    )
    assert await pg.fetchval(TAKEN) == 4  # what came since is forgotten, what is older is not
    assert (await run(files, "bot"))[1].startswith("0 messages")
    await routed(intake)
    assert await outbox(pg) == [1, 3, 4, 5, 6]


async def test_what_was_routed_is_forgotten_at_last_when_the_inbox_has_it_no_more(
    pg: Connection, db: Database, files: Files
) -> None:
    await write_before_the_bridge(pg)
    intake = await attached(pg, db, files)
    assert (await run(files, "bot"))[0] == 0
    await routed(intake)
    await forgotten(db)
    await pg.execute("delete from public.device_inbox where user_id = $1", BOT)
    looked_to: list[int] = []
    for _ in range(4):
        async with db.transaction() as conn:
            after = looked_to[-1] if looked_to else 0
            looked_to.append(await inbox.forget_gone(conn, after=after, batch=2))
    assert looked_to == [3, 5, 0, 4]  # and begins again
    assert await pg.fetchval(TAKEN) == 2


async def test_the_first_attach_stays_the_first_also_after_a_withdrawal(
    pg: Connection, db: Database, files: Files, tmp_path: Path, database: str
) -> None:
    await write_before_the_bridge(pg)
    await attached(pg, db, files)
    await settle_at(pg, 9)
    await announced(db, written(tmp_path / "without", database, "other", users=["@o_.*"]))
    await announced(db, files)
    rows = await pg.fetch(
        "select appservice_id, stream_id from appservice_bridge.attached order by 1"
    )
    assert [tuple(row) for row in rows] == [("bot", 5), ("other", 9)]


async def test_who_shares_users_with_an_earlier_appservice_doubles_nothing_for_that_one(
    pg: Connection, db: Database, files: Files, tmp_path: Path, database: str
) -> None:
    await write_before_the_bridge(pg)
    intake = await attached(pg, db, files)
    await send(pg, BOT, 6, n=6)
    await routed(intake)
    await settle_at(pg, 6)
    await forgotten(db)
    assert await pg.fetchval(TAKEN) == 0
    both = written(tmp_path / "both", database, "bot", "late")
    await announced(db, both)
    intake = Intake(db, owners(both.load()), nobody)
    assert (await run(both, "late"))[1].startswith("3 messages of 2 devices")
    await routed(intake)
    assert await outbox(pg, "bot") == [6, 1, 3, 5]
    assert await outbox(pg, "late") == [1, 3, 5]


async def test_an_unknown_appservice_is_refused_and_the_nearest_is_named(files: Files) -> None:
    code, out, err = await run(files, "bott")
    assert (code, out) == (1, "")
    assert err == "appservice-bridge: no appservice bott; did you mean bot?\n"


async def test_a_homeserver_without_an_inbox_to_read_is_refused(files: Files) -> None:
    document = yaml.safe_load(files.config.read_text())
    document["homeserver"] |= {"kind": "generic", "capture": "none"}
    files.config.write_text(yaml.safe_dump(document))
    code, out, err = await run(files, "bot")
    assert (code, out) == (1, "")
    assert "homeserver.kind is generic" in err
    assert err.count("\n") == 1


async def test_registrations_that_no_worker_has_run_with_are_refused(
    pg: Connection, db: Database, files: Files, tmp_path: Path, database: str
) -> None:
    await write_before_the_bridge(pg)
    await attached(pg, db, files)
    other = written(tmp_path / "other", database, "bot", users=["@c.*"])
    code, out, err = await run(other, "bot")
    assert (code, out) == (1, "")
    assert "start `appservice-bridge run` once" in err


MANY: Final = 12_000
HOLD_THE_SECOND_PAGE: Final = """
create function public.wait() returns trigger language plpgsql as $$ begin
    if (select count(*) from appservice_bridge.capture_log) > 5000 then
        perform pg_advisory_xact_lock(7);
    end if;
    return null;
end $$;
create trigger wait after insert on appservice_bridge.capture_log
    for each statement execute function public.wait()
"""


async def killed_in_the_second_page(pg: Connection, database: str, files: Files) -> None:
    """The command, SIGKILLed inside the DB transaction of its second page."""
    holder = await asyncpg.connect(database)
    await holder.execute("select pg_advisory_lock(7)")
    await pg.execute(HOLD_THE_SECOND_PAGE)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "appservice_bridge", "backfill", "bot"),
        *("--config", str(files.config)),
    )
    waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
    async with asyncio.timeout(60):
        while not await pg.fetchval(waiting):
            await asyncio.sleep(0.02)
    process.kill()
    await process.wait()
    await holder.close()
    async with asyncio.timeout(60):  # its backend finds out, and rolls back
        while await pg.fetchval("select count(*) from pg_locks where locktype = 'advisory'"):
            await asyncio.sleep(0.02)
    await pg.execute("drop function public.wait cascade")


async def test_killed_midway_and_run_again_it_loses_and_doubles_nothing(
    pg: Connection, database: str, db: Database, files: Files
) -> None:
    await make_synapse_tables(pg)
    for user in (BOT, OTHER):
        await add_device(pg, user)
    await pg.execute(
        "insert into public.device_inbox (user_id, device_id, stream_id, message_json)"
        " select '@b_' || 1 + n % 2 || ':example.org', 'DEV', n,"
        " json_build_object('type', 'm', 'sender', '@a:example.org',"
        " 'content', json_build_object('n', n)) from generate_series(1, $1::int) n",
        MANY,
    )
    await settle_at(pg, MANY)
    intake = await attached(pg, db, files)
    await killed_in_the_second_page(pg, database, files)
    waiting = await pg.fetchval("select count(*) from appservice_bridge.capture_log")
    assert waiting == 5000  # the first page
    _, said, _ = await run(files, "bot")
    assert said.startswith(f"{MANY - 5000} messages of 2 devices")
    await routed(intake)
    found: list[Any] = await outbox(pg)
    assert found == list(range(1, MANY + 1))
