"""Orders at the admin port that read Synapse's tables: resync and backfill."""

from pathlib import Path
from typing import Any, Final

import pytest

from appservice_bridge.cli.context import owners
from appservice_bridge.http.admin import ROOT
from appservice_bridge.routing.announcing import announce
from appservice_bridge.storage import inbox, synapse
from appservice_bridge.storage.database import Database
from tests.support.admin import Port, admin_port
from tests.support.bridge import Files, registration, write_files
from tests.support.delivered import add_device
from tests.support.facts import Connection, make_synapse_tables, send
from tests.support.memberships import begin, memberships
from tests.support.reloading import with_tokens

BOT: Final = "@b_1:example.org"
DONE: Final = "select action, outcome from appservice_bridge.admin_audit order by audit_id"


@pytest.fixture
def files(tmp_path: Path, database: str) -> Files:
    some = [registration("bot", "http://127.0.0.1:9", users=["@b_.*"])]
    return with_tokens(write_files(tmp_path, database, some, capture="triggers"))


async def order(port: Port, verb: str, **members: Any) -> tuple[int, dict[str, Any]]:
    path = f"{ROOT}/appservices/bot/{verb}"
    answer = await port.ask("POST", path, "operator", members or None)
    return answer.status, await answer.json()


async def test_backfill_counts_or_delivers_what_the_inbox_held_before(
    pg: Connection, db: Database, files: Files
) -> None:
    await make_synapse_tables(pg)
    await add_device(pg, BOT)
    for n in (1, 2, 3):
        await send(pg, BOT, n, n=n)
    await pg.execute("update public.stream_positions set stream_id = 3")
    await pg.execute("set search_path = appservice_bridge, public")
    async with admin_port(files, db) as port:
        status, told = await order(port, "backfill")
        assert (status, "once" in told["error"]) == (409, True)
        await synapse.install(pg)
        await announce(db, owners(files.load()), epoch="test", present=inbox.present)
        for dry_run, outcome, messages in (
            (True, "counted", 3),
            (False, "backfilled", 3),
            (False, "backfilled", 0),
        ):
            told = (await order(port, "backfill", dry_run=dry_run))[1]
            assert (told["outcome"], told["messages"]) == (outcome, messages)
    assert [tuple(row) for row in await pg.fetch(DONE)] == [
        ("backfill", "begun"),
        ("backfill", "3 messages of 1 devices"),
        ("backfill", "begun"),
        ("backfill", "0 messages of 0 devices"),
    ]


async def test_resync_tells_of_everyone_again(
    pg: Connection, db: Database, database: str, files: Files
) -> None:
    rooms = await memberships(pg, database)
    await rooms.change("!1", b_1="join", alice="join")
    await add_device(pg, BOT)
    async with admin_port(files, db) as port:
        assert (await order(port, "resync"))[0] == 409
        await begin(db, owners(files.load()))
        status, told = await order(port, "resync")
    assert (status, told["outcome"]) == (200, "resynced")
    assert (told["changed"], told["left"], told["devices"]) == (1, 0, 1)
    assert ("resync", "1 user, 1 device will be told again") in map(tuple, await pg.fetch(DONE))


async def test_a_table_of_synapse_s_that_is_gone_is_said_and_breaks_nothing(
    pg: Connection, db: Database, database: str, files: Files
) -> None:
    await memberships(pg, database)
    await begin(db, owners(files.load()))
    await pg.execute("drop table public.users cascade")
    async with admin_port(files, db) as port:
        status, told = await order(port, "resync")
        assert (status, told["errcode"]) == (409, "M_UNKNOWN")
        assert (await port.ask("GET", ROOT + "/appservices/bot")).status == 200
