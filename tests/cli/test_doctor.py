"""`doctor` as a whole, on a database in which something is wrong."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from tests.support.bridge import Files, registration, write_files
from tests.support.command import command
from tests.support.facts import Connection, attach

BOT = registration("bot", "http://127.0.0.1:9", users=["@b_.*"])


async def findings(files: Files, *more: str) -> dict[str, dict[str, Any]]:
    """All that it finds, by code; each code once."""
    config = ("--config", str(files.config))
    _, out, err = await command("doctor", "--json", *config, *more)
    assert out, err
    found = json.loads(out)["findings"]
    assert len({one["code"] for one in found}) == len(found)
    return {one["code"]: one for one in found}


async def test_a_server_name_that_no_user_of_synapse_has_is_a_fault_with_the_line_to_change(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    await attach(pg)
    files = write_files(tmp_path, database, [BOT], server_name="other.org", capture="triggers")
    assert "server_name" not in await findings(files)  # there is nobody yet
    await pg.execute("insert into public.users (name) values ('odd'), ('@alice:example.org')")
    found = (await findings(files))["server_name"]
    assert found["level"] == "fault"
    assert "the homeserver is example.org, and the config says other.org" in found["what"]
    assert "`homeserver.server_name: example.org`" in found["mend"]
    right = write_files(tmp_path, database, [BOT], capture="triggers")
    assert "server_name" not in await findings(right)


async def test_a_server_name_that_is_not_that_of_homeserver_yaml_is_one_fault(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    await attach(pg)
    await pg.execute("insert into public.users (name) values ('@alice:example.org')")
    files = write_files(tmp_path, database, [BOT], server_name="other.org", capture="triggers")
    homeserver = tmp_path / "homeserver.yaml"
    for said in ({"server_name": "example.org"}, {}):  # the users' say is the same finding
        homeserver.write_text(yaml.safe_dump(said))
        found = await findings(files, "--homeserver-config", str(homeserver))
        assert "`homeserver.server_name: example.org`" in found["server_name"]["mend"]
    await pg.execute("truncate public.users cascade")
    homeserver.write_text("server_name: example.org\n")
    found = await findings(files, "--homeserver-config", str(homeserver))
    assert "`homeserver.server_name: example.org`" in found["server_name"]["mend"]


async def test_a_database_that_lets_nobody_in_is_said_with_one_mend(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    name = str(await pg.fetchval("select 'nologin_' || current_database()"))
    await pg.execute(f"create role {name} login password 'secret'")
    try:
        parts = urlsplit(database)
        netloc = f"{name}:wrong@{parts.hostname}:{parts.port}"
        mend = "mend `database` or `database_password_file` in the config"
        await one_mend(tmp_path, parts._replace(netloc=netloc).geturl(), "password", mend)
    finally:
        await pg.execute(f"drop role {name}")
    elsewhere = parts._replace(path="/not_there").geturl()
    mend = "create it, or mend `database` in the config"
    await one_mend(tmp_path, elsewhere, "does not exist", mend)


async def test_a_schema_that_does_not_fit_is_said_with_one_mend(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    await pg.execute(
        "insert into appservice_bridge.schema_version (number, name) values (9999, 'newer')"
    )
    mend = "use the release that migrated it, or a newer one"
    await one_mend(tmp_path, database, "schema 9999", mend)
    await pg.execute("drop schema appservice_bridge cascade")
    mend = "run `appservice-bridge migrate`"
    await one_mend(tmp_path, database, "the bridge's tables are not there yet", mend)


async def one_mend(directory: Path, database: str, said: str, mend: str) -> None:
    """It says what is wrong, and apart from that what to do."""
    found = await findings(write_files(directory, database, [BOT]))
    (one,) = (found[code] for code in found.keys() & {"database", "schema"})
    assert said in one["what"]
    assert one["mend"] == mend
    for word in ("mend", "install", "create", "run"):
        assert f"{word} " not in one["what"]
