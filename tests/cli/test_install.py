"""install, uninstall, migrate, status and run, as an operator with few rights runs them."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from appservice_bridge.blueprint.files import known_migrations
from appservice_bridge.dev.postgres import EmbeddedPostgres
from appservice_bridge.domain.capture import TRIGGERS
from appservice_bridge.storage.drift import functions_of_release
from tests.support.bridge import Files, registration, worker_process, write_files
from tests.support.command import command
from tests.support.dump import schema_dump
from tests.support.facts import Connection, make_synapse_tables, outbox, send

BOT = "@b_1:example.org"


@pytest.fixture
async def synapse_owner(pg: Connection) -> AsyncIterator[Connection]:
    """The role that owns Synapse's database and tables, and no part of the bridge's."""
    name = await pg.fetchval("select current_database()")
    await pg.execute("drop schema if exists appservice_bridge cascade")
    await pg.execute(f"create role owner_{name}; create role bridge_{name} login password 'secret'")
    await pg.execute(f"alter database {name} owner to owner_{name}")
    await pg.execute(f"alter schema public owner to owner_{name}; set role owner_{name}")
    await make_synapse_tables(pg)
    await pg.execute("set search_path = public")
    yield pg
    await pg.execute("reset role")
    await pg.execute(f"alter database {name} owner to postgres; drop schema public cascade")
    await pg.execute(f"drop owned by bridge_{name} cascade; drop owned by owner_{name} cascade")
    await pg.execute(f"drop role owner_{name}, bridge_{name}")


@pytest.fixture
def files(synapse_owner: Connection, database: str, tmp_path: Path) -> Files:
    """A config that connects as the bridge's own role."""
    parts = urlsplit(database)
    role = f"bridge_{parts.path[1:]}"
    mine = parts._replace(netloc=f"{role}:secret@{parts.hostname}:{parts.port}").geturl()
    bot = registration("bot", "http://127.0.0.1:9", users=["@b_.*"])
    return write_files(tmp_path, mine, [bot], capture="triggers")


async def grant_what_is_printed(owner: Connection, files: Files) -> int:
    """Do as the command says; returns how many grants it were."""
    code, out, _ = await command("install", "--print-grants", "--config", str(files.config))
    assert code == 0
    await owner.execute(out)
    return out.count("GRANT")


async def test_a_role_without_rights_is_told_what_the_owner_must_grant(
    synapse_owner: Connection, files: Files
) -> None:
    code, _, err = await command("migrate", "--config", str(files.config))
    assert code == 1
    assert "GRANT CREATE ON DATABASE" in err
    assert "Traceback" not in err
    _, grants, _ = await command("install", "--print-grants", "--config", str(files.config))
    for line in ("GRANT CREATE ON DATABASE", "GRANT TRIGGER ON TABLE public.device_inbox"):
        assert line in grants
    await synapse_owner.execute(grants.replace("GRANT TRIGGER", "-- GRANT TRIGGER"))
    assert (await command("migrate", "--config", str(files.config)))[0] == 0
    code, _, err = await command("install", "--config", str(files.config))
    assert code == 1
    assert "GRANT TRIGGER ON TABLE public.device_inbox TO bridge_" in err
    assert "GRANT CREATE" not in err


async def test_a_role_with_the_printed_grants_installs_captures_and_uninstalls(
    synapse_owner: Connection, files: Files
) -> None:
    granted = await grant_what_is_printed(synapse_owner, files)
    config = ("--config", str(files.config))
    await synapse_owner.execute(
        "insert into users (name) values ('@alice:example.org'), ($$@b_1$$)"
    )
    applied = ", ".join(f"{number:04}" for number in known_migrations())
    assert await command("migrate", *config) == (0, f"applied {applied}\n", "")
    code, out, err = await command("install", *config)
    assert (code, err) == (0, "")
    assert "triggers made on device_inbox" in out
    assert "2 users belong to no appservice" in out
    await synapse_owner.execute("delete from users where name = '@alice:example.org'")
    code, out, _ = await command("install", *config)  # again, at any time
    assert (code, "1 user belongs to no appservice" in out) == (0, True)

    await send(synapse_owner, BOT, 1)  # by a role that may not even see the bridge's schema
    code, _, err = await command("uninstall", *config)
    assert code == 1
    assert "1 facts are not delivered yet" in err
    code, out, err = await command("uninstall", "--discard-backlog", "--all", *config)
    assert (code, f"{granted} grants are left" in err) == (1, True)
    assert await synapse_owner.fetchval("select to_regnamespace('appservice_bridge')") is None
    await send(synapse_owner, BOT, 2)
    _, last, *revokes = out.splitlines()
    assert len([last, *revokes]) == granted
    assert any("REVOKE DELETE ON TABLE public.device_inbox" in line for line in out.splitlines())
    await synapse_owner.execute("\n".join(revokes))
    code, out, _ = await command("uninstall", "--all", *config)
    assert (code, out.splitlines()[1:]) == (1, [last])
    await synapse_owner.execute(last)
    code, out, err = await command("uninstall", "--all", *config)
    assert (code, out.count("\n"), err) == (0, 1, "")
    assert "nothing of the capture is left" in out


async def put_up_and_taken_down(files: Files, homeserver: Connection) -> tuple[int, str, str]:
    """The life of a capture: what the last command says."""
    config = ("--config", str(files.config))
    assert (await command("migrate", *config))[0] == 0
    assert (await command("install", *config))[0] == 0
    await send(homeserver, BOT, 1)
    return await command("uninstall", "--discard-backlog", "--all", *config)


async def test_a_role_of_its_own_leaves_the_database_as_it_was_when_the_owner_revoked(
    synapse_owner: Connection, files: Files, postgres_server: EmbeddedPostgres, database: str
) -> None:
    before = schema_dump(postgres_server, database)
    await grant_what_is_printed(synapse_owner, files)
    code, out, _ = await put_up_and_taken_down(files, synapse_owner)
    assert code == 1
    assert schema_dump(postgres_server, database) != before  # the grants
    revokes = [line for line in out.splitlines() if line.startswith("REVOKE")]
    await synapse_owner.execute("\n".join(revokes))
    assert schema_dump(postgres_server, database) == before


async def test_the_owner_s_role_leaves_the_database_as_it_was_and_nothing_to_revoke(
    synapse_owner: Connection, files: Files, postgres_server: EmbeddedPostgres, database: str
) -> None:
    owner = await synapse_owner.fetchval("select current_user::text")
    await synapse_owner.execute("reset role")
    await synapse_owner.execute(f"alter role {owner} login password 'secret'")
    document = files.config.read_text()
    files.config.write_text(document.replace(owner.replace("owner", "bridge"), owner))
    await synapse_owner.execute(f"set role {owner}; grant select on users to {owner}")
    before = schema_dump(postgres_server, database)
    code, out, err = await put_up_and_taken_down(files, synapse_owner)
    assert (code, out.count("\n"), err) == (0, 1, "")
    assert schema_dump(postgres_server, database) == before


async def test_who_did_not_make_the_schema_is_told_whose_it_is(
    synapse_owner: Connection, files: Files
) -> None:
    owner = await synapse_owner.fetchval("select current_user::text")
    await synapse_owner.execute("create schema appservice_bridge")
    code, _, err = await command("uninstall", "--config", str(files.config))
    assert code == 1
    assert f"belongs to role {owner}: uninstall with a `database`" in err


def with_delete_delivered(files: Files, choice: str) -> None:
    document = yaml.safe_load(files.config.read_text())
    document["appservices"] = {"bot": {"delete_delivered": choice}}
    files.config.write_text(yaml.safe_dump(document))


async def test_deleting_from_the_inbox_is_asked_for_only_where_an_appservice_opted_in(
    synapse_owner: Connection, files: Files
) -> None:
    config = ("--config", str(files.config))
    await synapse_owner.execute("create table sliding_sync_connections (user_id text)")
    wanted = (
        "GRANT DELETE ON TABLE public.device_inbox",
        "GRANT SELECT ON TABLE public.sliding_sync_connections",
    )
    for choice, asked_for in (("off", False), ("auto", True), ("on", True)):
        with_delete_delivered(files, choice)
        _, grants, _ = await command("install", "--print-grants", *config)
        assert [line in grants for line in wanted] == [asked_for] * 2
    await synapse_owner.execute(grants.replace("GRANT DELETE", "-- GRANT DELETE"))
    assert (await command("migrate", *config))[0] == 0
    code, _, err = await command("install", *config)
    assert code == 1
    assert "GRANT DELETE ON TABLE public.device_inbox TO bridge_" in err
    assert err.count("GRANT") == 1
    with_delete_delivered(files, "auto")
    assert (await command("install", *config))[0] == 0  # the cleaner rests, and says why
    _, out, _ = await command("uninstall", *config)
    assert "REVOKE DELETE" not in out


async def test_running_without_synapse_s_tables_is_refused(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    bot = registration("bot", "http://127.0.0.1:9")
    for capture in ("triggers", "polling"):
        files = write_files(tmp_path, database, [bot], capture=capture)
        code, _, err = await command("run", "--config", str(files.config))
        assert (code, "no tables of Synapse" in err) == (1, True)


async def test_running_with_a_server_name_that_no_user_of_synapse_has_is_refused(
    synapse_owner: Connection, files: Files
) -> None:
    await grant_what_is_printed(synapse_owner, files)
    config = ("--config", str(files.config))
    assert (await command("migrate", *config))[0] == 0
    await synapse_owner.execute("insert into users (name) values ('@alice:example.com')")
    code, _, err = await command("run", *config)
    assert code == 1
    assert err.splitlines()[-1] == (
        "appservice-bridge: homeserver.server_name is example.org, and the users in this database "
        "are of example.com: set `homeserver.server_name: example.com` in the config"
    )
    role = await synapse_owner.fetchval("select 'bridge_' || current_database()")
    await synapse_owner.execute(f"revoke select on users from {role}")
    async with worker_process(files):  # nobody knows
        pass
    await synapse_owner.execute(
        f"grant select on users to {role}; insert into users (name) values ('@bob:example.org')"
    )
    async with worker_process(files):
        pass


async def test_running_without_the_triggers_starts_in_polling_and_says_so(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    bot = registration("bot", "http://127.0.0.1:9", users=["@b_.*"])
    files = write_files(tmp_path, database, [bot], capture="triggers")
    await make_synapse_tables(pg)
    async with worker_process(files) as running:
        told = running.log.read_text()
        assert "trigger appservice_bridge_insert on table device_inbox is not there" in told
        assert "run `appservice-bridge install`" in told
        await send(pg, BOT, 1, n=1)
        await until_routed(pg, [1])
        code, _, err = await command("status", "--config", str(files.config))
        assert (code, "capture: polling instead of triggers since" in err) == (0, True)
    await pg.execute("update appservice_bridge.worker set alive_until = now()")
    _, _, err = await command("status", "--config", str(files.config))
    assert "by a worker that has ended: function wake_intake is not there and" in err
    assert len(err.splitlines()) == 3  # not installed, what is missing, and the mode
    assert "more: run `appservice-bridge install`" in err
    _, out, _ = await command("status", "--json", "--config", str(files.config))
    capture = json.loads(out)["capture"]
    assert (capture["mode"], capture["left_out"]) == ("polling", [])
    assert len(capture["problems"]) == len(TRIGGERS) + len(functions_of_release())


async def test_a_disabled_trigger_is_made_anew_by_install(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    bot = registration("bot", "http://127.0.0.1:9")
    files = write_files(tmp_path, database, [bot], capture="triggers")
    await make_synapse_tables(pg)
    for _ in range(2):
        code, _, err = await command("install", "--config", str(files.config))
        assert (code, err) == (0, "")
        await send(pg, BOT, 1)
        await pg.execute("alter table public.device_inbox disable trigger user")
    assert await pg.fetchval("select count(*) from appservice_bridge.capture_log") == 2


async def test_polling_needs_no_right_but_to_read_and_makes_no_trigger(
    synapse_owner: Connection, files: Files
) -> None:
    text = files.config.read_text()
    files.config.write_text(text.replace("capture: triggers", "capture: polling"))
    config = ("--config", str(files.config))
    _, grants, _ = await command("install", "--print-grants", *config)
    assert "TRIGGER" not in grants
    await grant_what_is_printed(synapse_owner, files)
    assert (await command("migrate", *config))[0] == 0
    code, out, err = await command("install", *config)
    assert (code, err) == (0, "")
    assert "no trigger made" in out
    ours = "select count(*) from pg_trigger where tgname like 'appservice%'"
    assert await synapse_owner.fetchval(ours) == 0
    async with worker_process(files) as running:
        await send(synapse_owner, BOT, 1, n=1)
        await synapse_owner.execute("reset role")
        await until_routed(synapse_owner, [1])
        assert "drift.found" not in running.log.read_text()
    code, _, err = await command("status", *config)
    assert (code, err) == (0, "")


async def test_polling_does_without_synapse_s_tasks_and_doctor_says_what_it_then_misses(
    synapse_owner: Connection, files: Files
) -> None:
    text = files.config.read_text()
    files.config.write_text(text.replace("capture: triggers", "capture: polling"))
    config = ("--config", str(files.config))
    _, grants, _ = await command("install", "--print-grants", *config)
    tasks = next(line for line in grants.splitlines() if "public.scheduled_tasks" in line)
    assert tasks.startswith("GRANT SELECT ON TABLE")
    await synapse_owner.execute(grants.replace(tasks, ""))
    for step in ("migrate", "install"):
        assert (await command(step, *config))[0] == 0
    _, out, err = await command("doctor", *config)
    said = " ".join((out + err).split())
    assert f"the owner of the homeserver's database must run {tasks}" in said
    assert "a device that is deleted and made again within half a second" in said
    await synapse_owner.execute(tasks)
    _, out, err = await command("doctor", *config)
    assert "scheduled_tasks" not in out + err


async def test_a_table_that_doctor_may_not_read_is_a_fault_beside_all_else_that_it_found(
    synapse_owner: Connection, files: Files
) -> None:
    config = ("--config", str(files.config))
    await grant_what_is_printed(synapse_owner, files)
    for step in ("migrate", "install"):
        assert (await command(step, *config))[0] == 0
    role = await synapse_owner.fetchval("select 'bridge_' || current_database()")
    await synapse_owner.execute(f"revoke select on users from {role}")
    code, out, _ = await command("doctor", "--json", *config)
    found = {one["code"]: one for one in json.loads(out)["findings"]}
    assert code == 1
    assert {"grant_missing", "no_worker", "synapse_unreadable"} <= set(found)
    assert "permission denied for table users" in found["synapse_unreadable"]["what"]
    assert "appservice-bridge install --print-grants" in found["synapse_unreadable"]["mend"]


async def until_routed(pg: Connection, wanted: list[int]) -> None:
    """Wait until these messages are on their way."""
    async with asyncio.timeout(60):
        while await outbox(pg) != wanted:
            await asyncio.sleep(0.1)


async def test_a_restored_dump_gets_a_new_epoch(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = write_files(tmp_path, database, [registration("bot", "http://127.0.0.1:9")])
    epoch = "select epoch from appservice_bridge.database_identity"
    epochs = []
    for _ in range(2):
        assert (await command("migrate", "--restored", "--config", str(files.config)))[0] == 0
        epochs.append(await pg.fetchval(epoch))
    assert len(set(epochs)) == 2


async def test_the_tables_are_not_removed_under_a_running_worker(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = write_files(tmp_path, database, [registration("bot", "http://127.0.0.1:9")])
    await pg.execute(
        "insert into appservice_bridge.worker (worker_id, name, alive_until)"
        " values (gen_random_uuid(), 'here:1', now() + '1 min')"
    )
    code, _, err = await command("uninstall", "--all", "--config", str(files.config))
    assert code == 1
    assert "worker here:1 is running" in err


async def test_a_database_that_is_not_synapses_is_refused(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = write_files(tmp_path, database, [registration("bot", "http://127.0.0.1:9")])
    code, _, err = await command("install", "--config", str(files.config))
    assert code == 1
    assert "no tables of Synapse" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["run", "status", "install"])
async def test_pending_migrations_are_refused_and_the_command_is_named(
    pg: Connection, database: str, tmp_path: Path, name: str
) -> None:
    await pg.execute("drop schema appservice_bridge cascade")
    files = write_files(tmp_path, database, [registration("bot", "http://127.0.0.1:9")])
    code, out, err = await command(name, "--config", str(files.config))
    assert (code, out) == (1, "")
    assert "appservice-bridge migrate" in err


@pytest.mark.parametrize("name", ["run", "migrate", "install", "uninstall", "status", "check"])
async def test_each_command_names_every_fault_of_a_config_and_ends_1(
    tmp_path: Path, name: str
) -> None:
    config = tmp_path / "bridge.yaml"
    config.write_text("databse: x\nhomeserver: {server_name: 7}\n")
    code, out, err = await command(name, "--config", str(config))
    assert (code, out) == (1, "")
    assert "bridge.yaml:1" in err
    assert "bridge.yaml:2" in err


@pytest.mark.parametrize("name", ["run", "migrate", "install", "status"])
async def test_a_database_that_does_not_answer_is_said_in_one_line(
    tmp_path: Path, name: str
) -> None:
    dsn = "postgresql://bridge:hidden-word@127.0.0.1:9/synapse"
    files = write_files(tmp_path, dsn, [registration("bot", "http://127.0.0.1:9")])
    code, out, err = await command(name, "--config", str(files.config))
    assert (code, out) == (1, "")
    assert err.strip() == (
        "appservice-bridge: database unavailable: no answer from 127.0.0.1:9 "
        "(Connection refused); does Postgres run there?"
    )


async def test_an_address_in_use_is_said_in_one_line(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = write_files(tmp_path, database, [registration("bot", "http://127.0.0.1:9")])
    port = files.relay_url.rpartition(":")[2]
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", int(port))
    code, _, err = await command("run", "--config", str(files.config))
    server.close()
    assert code == 1
    assert err.splitlines()[-1] == (
        f"appservice-bridge: listen.relay: 127.0.0.1:{port} is in use: does a worker run already? "
        "Else change `listen.relay`"
    )
    assert "Traceback" not in err


async def test_status_shows_each_lane_also_with_no_worker_running(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    await pg.execute(
        "insert into appservice_bridge.lane (appservice_id, epoch) values ('bot', 'e');"
        "insert into appservice_bridge.outbox_head values ('bot', 3);"
        "insert into appservice_bridge.appservice values ('bot', '', now())"
    )
    await make_synapse_tables(pg)
    bot = registration("bot", "http://127.0.0.1:9")
    files = write_files(tmp_path, database, [bot], capture="triggers")
    code, out, err = await command("status", "--json", "--config", str(files.config))
    assert (code, err) == (0, "")
    shown = json.loads(out)
    assert shown["version"] == 1
    assert shown["capture_installed"] is False
    assert [(lane["appservice_id"], lane["state"], lane["waiting"]) for lane in shown["lanes"]] == [
        ("bot", "unserved", 3)
    ]
    code, out, err = await command("status", "--config", str(files.config))
    assert code == 0
    assert "unserved" in out
    assert "run `appservice-bridge install`" in err


async def test_status_shows_a_lane_that_owes_only_device_updates_as_delivering(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    await pg.execute(
        "insert into appservice_bridge.worker"
        " values (gen_random_uuid(), 'w', now(), now() + interval '50 seconds');"
        "insert into appservice_bridge.lane (appservice_id, epoch, worker_id)"
        " select 'bot', 'e', worker_id from appservice_bridge.worker;"
        "insert into appservice_bridge.outbox_head values ('bot', 0);"
        "insert into appservice_bridge.appservice values ('bot', '', now());"
        "insert into appservice_bridge.device_list_update values ('bot', '@a:x', 'left');"
        "insert into appservice_bridge.device_key_state (appservice_id, user_id, device_id,"
        " recount) values ('bot', '@a:x', 'D', true)"
    )
    files = write_files(tmp_path, database, [registration("bot", "http://127.0.0.1:9")])
    code, out, _ = await command("status", "--json", "--config", str(files.config))
    [lane] = json.loads(out)["lanes"]
    assert (code, lane["state"], lane["waiting"], lane["device_updates"]) == (0, "delivering", 0, 2)


async def test_bad_usage_ends_2() -> None:
    assert (await command("status", "--no-such-option"))[0] == 2
    assert (await command("no-such-command"))[0] == 2
    assert (await command("run", "--config", "x", "--log-level", "loud"))[0] == 2
