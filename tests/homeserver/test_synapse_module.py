"""The module in a real Synapse: it leaves what the commands leave, and is never in the way."""

import asyncio
import dataclasses
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import asyncpg
import psycopg2
import pytest

from appservice_bridge.blueprint.files import known_migrations
from appservice_bridge.dev.parts import launched
from appservice_bridge.dev.process import ChildDiedError
from appservice_bridge.storage import grants
from tests.support.dump import schema_dump
from tests.support.foreign_environment import OURS, synapse_environment
from tests.support.homeserver import Client, Homeserver, homeserver, postgres_on_disk, registered
from tests.support.wheel import unpacked_wheel

MODULE: Final = "appservice_bridge.synapse.Module"
ROWS: Final = {
    "versions": "select number, name from appservice_bridge.schema_version order by 1",
    "foreign": "select user_id from appservice_bridge.foreign_user order by 1",
    "floor": "select settled, next from appservice_bridge.stream_floor where stream = 'to_device'",
    "appservices": "select appservice_id from appservice_bridge.appservice",
    "triggers": "select tgrelid::regclass::text, tgname, tgenabled from pg_trigger"
    " where tgname ~ '^appservice_bridge' order by 1, 2",
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("environment")
    return synapse_environment(directory / "hook", unpacked_wheel(directory))


@pytest.fixture(scope="module")
def lived_in() -> Iterator[Homeserver]:
    """A Synapse that stands still, with users, a message in its inbox, and no bridge yet."""
    appservices = [
        registered("bot", users=["@b_.*"]),
        registered("puppeting", users=["@.*"], exclusive=False, listens=False),
    ]
    with postgres_on_disk() as server, homeserver(server, appservices, native=True) as running:
        asyncio.run(populate(running))
        running.synapse.stop()
        yield running


async def populate(of: Homeserver) -> None:
    async with aiohttp.ClientSession() as http:
        client = Client(of=of, http=http)
        alice, _ = await client.people("person", 2)
        puppet = await client.puppet("bot", "b_1")
        await client.send(alice, {puppet.user_id: {puppet.device_id: {"n": 1}}})


@pytest.fixture
def bare(lived_in: Homeserver) -> Homeserver:
    """It again, with nothing of the bridge's in its database."""
    lived_in.execute("drop schema if exists appservice_bridge cascade")
    return lived_in


OWN_THE_TABLES: Final = """
do $$ declare one record; begin
    for one in select oid::regclass as name from pg_class
                where relnamespace = 'public'::regnamespace and relkind in ('r', 'S')
                  and not exists (select from pg_depend
                                   where objid = pg_class.oid and deptype in ('a', 'i')
                                     and relkind = 'S')
    loop
        execute format('alter table %%s owner to few', one.name);
    end loop;
end $$
"""


@pytest.fixture
def few(bare: Homeserver) -> Iterator[str]:
    """How Synapse connects as a role that owns its tables, and not the database."""
    bare.execute("create role few login password 'x'; grant all on schema public to few")
    bare.execute(OWN_THE_TABLES)
    yield bare.dsn.replace(bare.dsn.split("//")[1].rpartition("@")[0], "few:x")
    bare.execute("reassign owned by few to postgres; drop owned by few; drop role few")


@asynccontextmanager
async def started(
    of: Homeserver,
    environment: Mapping[str, str],
    *,
    until: str,
    config: Mapping[str, Any] | None = None,
    native: bool = False,
    extra: Mapping[str, Any] | None = None,
    database: str | None = None,
) -> AsyncIterator[str]:
    """Synapse with the module, once it answers and the module said this; all that it said."""
    was = of.synapse.settings
    of.synapse.settings = dataclasses.replace(
        was,
        environment=environment,
        log_level="INFO",
        native_encryption=native,
        database=database or of.dsn,
        extra={"modules": [{"module": MODULE, "config": dict(config or {})}], **(extra or {})},
    )
    before = of.synapse.log.stat().st_size
    try:
        async with asyncio.timeout(60):
            await launched(of.synapse)
            while until not in said(of, before):
                await asyncio.sleep(0.05)
        yield said(of, before)
    except (ChildDiedError, TimeoutError) as fault:
        raise AssertionError(of.synapse.log.read_bytes()[before:][-6000:].decode()) from fault
        raise
    finally:
        of.synapse.stop()
        of.synapse.settings = was


def said(of: Homeserver, after: int) -> str:
    lines = of.synapse.log.read_bytes()[after:].decode().splitlines()
    return "\n".join(line for line in lines if " appservice_bridge.synapse " in line)


def left(of: Homeserver) -> tuple[str, dict[str, object]]:
    """All that installing leaves: objects with owners and grants, and rows."""
    return schema_dump(of.postgres, of.dsn), {name: of.rows(sql) for name, sql in ROWS.items()}


async def installed_by_commands(of: Homeserver) -> tuple[str, dict[str, object]]:
    of.execute("drop schema if exists appservice_bridge cascade")
    await of.bridge.prepare("migrate")
    await of.bridge.prepare("install")
    return left(of)


def test_it_loads_where_none_of_the_bridge_s_dependencies_are(
    environment: dict[str, str],
) -> None:
    code = (
        "import sys, appservice_bridge.synapse as found; from synapse.app import homeserver\n"
        "print(found.__file__); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    where, modules = done.stdout.splitlines()
    assert Path(where).is_relative_to(environment["PYTHONPATH"].partition(":")[2])
    assert not set(OURS) & {name.partition(".")[0] for name in modules.split()}
    blocked = subprocess.run([sys.executable, "-c", "import asyncpg"], env=environment, cwd="/")
    assert blocked.returncode == 1


async def test_what_it_leaves_is_what_the_commands_leave_and_uninstall_leaves_nothing(
    bare: Homeserver, environment: dict[str, str]
) -> None:
    before = schema_dump(bare.postgres, bare.dsn)
    async with started(bare, environment, until="capture installed") as log:
        assert "2 users belong to no appservice" in log
    by_module = left(bare)
    assert by_module[1]["foreign"] == [("@person0:lab.test",), ("@person1:lab.test",)]
    assert by_module[1]["floor"] != [(0, None)]
    await bare.bridge.prepare("uninstall")
    bare.execute("drop schema appservice_bridge cascade")
    assert schema_dump(bare.postgres, bare.dsn) == before
    assert await installed_by_commands(bare) == by_module


async def test_a_start_beside_what_is_there_verifies_it_and_names_native_deliveries(
    bare: Homeserver, environment: dict[str, str]
) -> None:
    by_commands = await installed_by_commands(bare)
    async with started(bare, environment, until="capture verified", native=True) as log:
        assert "msc2409_to_device_messages_enabled: false" in log
        assert "msc3202_transaction_extensions: false" in log
        assert log.count("to bot, beside the bridge") == 2
        assert "puppeting" not in log
    assert left(bare) == by_commands
    async with started(bare, environment, until="capture verified") as log:
        assert "delivered twice" not in log


async def test_a_start_with_a_newer_release_brings_everything_up_to_it(
    bare: Homeserver, environment: dict[str, str]
) -> None:
    wanted = await installed_by_commands(bare)
    bare.execute("drop schema appservice_bridge cascade")
    first = known_migrations()[1]
    bare.execute(
        "create schema appservice_bridge; set search_path = appservice_bridge;"
        "create table schema_version (number integer primary key, name text not null,"
        " applied_at timestamptz not null default clock_timestamp());"
        f"insert into schema_version values (1, '{first.name}');" + first.read_text()
    )
    bare.execute(
        "create function appservice_bridge.capture_device_inbox() returns trigger"
        " language plpgsql as 'begin return null; end';"
        "create trigger appservice_bridge_insert after insert on device_inbox"
        " referencing new table as inserted for each statement"
        " execute function appservice_bridge.capture_device_inbox();"
        "alter table device_inbox disable trigger user"
    )
    async with started(bare, environment, until="capture installed") as log:
        assert "migrations 0002" in log
    assert left(bare) == wanted


async def test_a_table_that_is_in_use_delays_the_capture_and_not_synapse(
    bare: Homeserver, environment: dict[str, str]
) -> None:
    writer = psycopg2.connect(bare.dsn)
    writer.cursor().execute("lock table device_inbox in row exclusive mode")
    async with started(bare, environment, until=""):
        async with asyncio.timeout(60):
            while len(bare.rows(ROWS["triggers"])) < 9:  # all but the one on device_inbox
                await asyncio.sleep(0.05)
        assert bare.rows("select 1 from pg_trigger where tgrelid = 'device_inbox'::regclass") == []
        began = asyncio.get_running_loop().time()
        await asyncio.to_thread(
            bare.execute, "insert into device_inbox values ('@x:y', 'D', 0, '{}', 'master')"
        )
        assert asyncio.get_running_loop().time() - began < 1
        writer.rollback()
        async with asyncio.timeout(60):
            while len(bare.rows(ROWS["triggers"])) < 10:
                await asyncio.sleep(0.05)
    writer.close()


async def test_a_role_of_its_own_gets_what_a_worker_needs_and_no_more(
    bare: Homeserver, environment: dict[str, str]
) -> None:
    bare.execute("drop role if exists plain_bridge; create role plain_bridge login password 'x'")
    config = {"role": "plain_bridge"}
    async with started(bare, environment, until="capture installed", config=config):
        document = bare.bridge.config.read_text()
        server = bare.dsn.rpartition("@")[2]
        bare.bridge.config.write_text(
            document.replace(bare.dsn, f"postgresql://plain_bridge:x@{server}")
        )
        await bare.start_bridge()
        assert bare.rows(
            "select count(*) from pg_stat_activity where usename = 'plain_bridge'"
        ) != [(0,)]
        bare.bridge.stop()
        bare.bridge.config.write_text(document)
    more_than_reading = (
        "select table_name, privilege_type from information_schema.role_table_grants"
        " where grantee = 'plain_bridge' and table_schema = 'public' and privilege_type <> 'SELECT'"
    )
    assert bare.rows(more_than_reading) == [("device_inbox", "DELETE")]
    assert await lacking_to_clean(bare, "plain_bridge") == ["CREATE ON DATABASE synapse"]
    async with started(bare, environment, until="capture verified", config=config) as log:
        assert "grants given" not in log
    bare.execute("drop owned by plain_bridge; drop role plain_bridge")


async def lacking_to_clean(of: Homeserver, role: str) -> list[str]:
    """What `install --print-grants` would have the owner grant this role, but for triggers."""
    conn = await asyncpg.connect(f"postgresql://{role}:x@{of.dsn.rpartition('@')[2]}")
    try:
        needed = await grants.rights(conn, triggers=False, cleaning=True)
    finally:
        await conn.close()
    return [right.on for right in needed if not right.held]


async def test_a_role_that_is_not_to_delete_is_not_granted_it(
    bare: Homeserver, environment: dict[str, str]
) -> None:
    bare.execute("drop role if exists plain_bridge; create role plain_bridge login password 'x'")
    config = {"role": "plain_bridge", "delete_delivered": False}
    async with started(bare, environment, until="capture installed", config=config):
        pass
    lacking = await lacking_to_clean(bare, "plain_bridge")
    assert "DELETE ON TABLE public.device_inbox" in lacking
    bare.execute("drop owned by plain_bridge; drop role plain_bridge")


async def test_a_role_that_may_not_and_a_config_that_is_wrong_are_said_and_synapse_runs(
    bare: Homeserver, environment: dict[str, str], few: str
) -> None:
    wrong = {"rolle": "bridge", "role": 7, "delete_delivered": "no"}
    async with started(bare, environment, until="not installed", config=wrong, database=few) as log:
        assert "permission denied for database" in log
        assert "appservice-bridge install" in log
        assert "rolle is not a known key" in log
        assert "role must be the name" in log
        assert "delete_delivered must be" in log
        assert await bare.synapse.ready()


async def test_a_schema_of_another_role_is_left_to_it(
    bare: Homeserver, environment: dict[str, str], few: str
) -> None:
    by_commands = await installed_by_commands(bare)
    async with started(bare, environment, until="capture in place", database=few) as log:
        assert "left to role postgres" in log
    assert left(bare) == by_commands
    bare.execute("drop trigger appservice_bridge_delete on devices")
    async with started(bare, environment, until="not everything", database=few) as log:
        assert "no trigger on devices" in log


async def test_sqlite_is_refused_and_synapse_runs(
    bare: Homeserver, environment: dict[str, str]
) -> None:
    sqlite = {"database": {"name": "sqlite3", "args": {"database": ":memory:"}}}
    async with started(bare, environment, until="nothing is captured", extra=sqlite) as log:
        assert "needs Postgres" in log
        assert await bare.synapse.ready()
