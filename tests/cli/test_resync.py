"""`resync`, with no worker running."""

from pathlib import Path

import pytest
import yaml

from appservice_bridge.cli.context import owners
from appservice_bridge.storage.database import Database
from tests.support.bridge import Files, registration, write_files
from tests.support.command import command
from tests.support.facts import Connection
from tests.support.memberships import begin, memberships, residents, told


@pytest.fixture
def files(database: str, tmp_path: Path) -> Files:
    """Two appservices, one of them without encryption."""
    bot = registration("bot", "http://127.0.0.1:9", users=["@b_.*"])
    plain = registration("plain", "http://127.0.0.1:9") | {"org.matrix.msc3202": False}
    return write_files(tmp_path, database, [bot, plain], capture="triggers")


async def test_case_30_resync_tells_of_everyone_and_every_device_again(
    pg: Connection, database: str, files: Files, tmp_path: Path
) -> None:
    rooms = await memberships(pg, database)
    await rooms.change("!1", b_1="join", alice="join", carol="join")
    await pg.execute(
        "insert into public.devices (user_id, device_id) values ('@b_1:example.org', 'DEV')"
    )
    config = ("--config", str(files.config))
    code, _, err = await command("resync", "bot", *config)
    assert code == 1
    assert "start one with this config first" in err
    async with Database.open(database) as db:
        await begin(db, owners(files.load()))
    await told(pg)
    await pg.execute("update appservice_bridge.device_key_state set waiting = false")
    done = await command("resync", "bot", *config)
    assert done == (0, "2 users, 1 device will be told again\n", "")
    assert await told(pg) == {"alice": "changed", "carol": "changed"}
    assert await residents(pg) == {("!1", "b_1")}
    assert await pg.fetchval("select waiting from appservice_bridge.device_key_state")


@pytest.mark.parametrize("appservice_id", ["nobody", "plain"])
async def test_an_id_that_gets_no_encryption_data_is_refused_and_those_that_do_are_named(
    files: Files, appservice_id: str
) -> None:
    code, out, err = await command("resync", appservice_id, "--config", str(files.config))
    assert (code, out) == (1, "")
    refused = f"no appservice {appservice_id} that gets encryption data"
    assert err == f"appservice-bridge: {refused}; there are: bot\n"


async def test_where_no_tables_of_the_homeserver_are_read_resync_is_refused(files: Files) -> None:
    document = yaml.safe_load(files.config.read_text())
    document["homeserver"] |= {"kind": "generic", "capture": "none"}
    files.config.write_text(yaml.safe_dump(document))
    code, _, err = await command("resync", "bot", "--config", str(files.config))
    assert code == 1
    assert "homeserver.kind is generic" in err


async def test_a_database_without_synapse_is_refused(files: Files) -> None:
    code, _, err = await command("resync", "bot", "--config", str(files.config))
    assert code == 1
    assert "no tables of Synapse" in err
