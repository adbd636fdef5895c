"""What `doctor` finds in the bridge's own state: each test breaks one thing."""

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from appservice_bridge.blueprint.files import known_migrations
from appservice_bridge.doctor import database as doctor_database
from appservice_bridge.doctor import homeserver
from appservice_bridge.doctor.database import database as examined
from appservice_bridge.doctor.finding import Finding, Level
from appservice_bridge.storage import migrations, synapse
from appservice_bridge.storage.database import connect
from appservice_bridge.storage.migrations import SchemaOutdatedError
from tests.support.bridge import registration, worker, write_files
from tests.support.facts import Connection, attach, make_synapse_tables


@pytest.fixture
async def pg(database: str) -> AsyncIterator[Connection]:
    """A connection as the bridge's own are."""
    conn = await connect(database)
    yield conn
    await conn.close()


async def found(pg: Connection, database: str, directory: Path, capture: str) -> dict[str, Finding]:
    one = [registration("bot", "http://127.0.0.1:9")]
    of = write_files(directory, database, one, capture=capture).load()
    return {finding.code: finding for finding in await examined(pg, of)}


async def test_no_running_worker_is_found_and_a_running_one_is_not(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = write_files(tmp_path, database, [registration("bot", "http://127.0.0.1:9")])
    of = files.load()
    assert [one.code for one in await examined(pg, of)] == ["no_worker"]
    async with worker(files):
        assert [one.code for one in await examined(pg, of)] == []


async def test_a_postgres_of_another_release_is_found(
    pg: Connection, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = write_files(tmp_path, database, [registration("bot", "http://127.0.0.1:9")]).load()
    assert [one.code for one in await examined(pg, of)] == ["no_worker"]
    release = pg.get_server_version().major
    monkeypatch.setattr(doctor_database, "NEWEST_POSTGRES", release - 1)
    new, _ = await examined(pg, of)
    assert (new.code, new.level) == ("postgres_new", Level.DOUBT)
    assert f"Postgres {release} is newer" in new.what
    assert f"14 to {release - 1}" in new.mend
    monkeypatch.setattr(migrations, "OLDEST_POSTGRES", release + 1)
    (old,) = await examined(pg, of)
    assert (old.code, old.level) == ("postgres_old", Level.FAULT)
    assert "upgrade to Postgres 14 or newer" in old.mend


async def test_a_capture_that_was_never_installed_is_one_finding(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    await make_synapse_tables(pg)
    one = (await found(pg, database, tmp_path, "triggers"))["not_installed"]
    assert "appservice-bridge install" in one.mend
    assert "workers poll Synapse's tables" in one.what
    await synapse.install(pg)
    assert set(await found(pg, database, tmp_path, "triggers")) == {"no_worker"}


async def test_before_the_first_worker_nobody_doubts_how_facts_are_captured(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    await attach(pg)
    before = await found(pg, database, tmp_path, "triggers")
    assert set(before) == {"no_worker"}
    assert before["no_worker"].what == "no worker has run yet"
    await pg.execute("update capture_state set mode = 'polling', looked_at = now()")
    after = await found(pg, database, tmp_path, "triggers")
    assert set(after) == {"no_worker", "capture_mode"}
    assert after["no_worker"].what == "no worker is running"


async def test_one_missing_trigger_is_named(pg: Connection, database: str, tmp_path: Path) -> None:
    await attach(pg)
    await pg.execute("drop trigger appservice_bridge_delete on public.devices")
    broken = (await found(pg, database, tmp_path, "triggers"))["capture_broken"]
    assert "trigger appservice_bridge_delete on table devices" in broken.what


async def test_each_right_that_is_missing_is_found_with_its_grant(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    await attach(pg)
    name = await pg.fetchval("select current_database()")
    role = f"few_{name}"
    await pg.execute(
        f"create role {role} login password 'secret'; grant usage on schema public to {role};"
        f"grant usage on schema appservice_bridge to {role};"
        f"grant all on all tables in schema appservice_bridge, public to {role};"
        f"revoke select on public.e2e_fallback_keys_json from {role};"
        f"revoke trigger on public.device_inbox from {role}"
    )
    parts = urlsplit(database)
    netloc = f"{role}:secret@{parts.hostname}:{parts.port}"
    conn = await connect(parts._replace(netloc=netloc).geturl())
    try:
        of = write_files(tmp_path, database, [registration("bot", None)], capture="triggers").load()
        mends = [one.mend for one in await examined(conn, of) if one.code == "grant_missing"]
    finally:
        await conn.close()
        await pg.execute(f"drop owned by {role} cascade; drop role {role}")
    asked = "the owner of the homeserver's database must run GRANT "
    assert f"{asked}SELECT ON TABLE public.e2e_fallback_keys_json TO {role};" in mends
    assert f"{asked}TRIGGER ON TABLE public.device_inbox TO {role};" in mends
    assert not any("e2e_one_time_keys_json" in mend for mend in mends)


async def test_a_database_that_is_not_the_homeservers_is_found(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    assert "not_synapse" in await found(pg, database, tmp_path, "triggers")


async def test_pending_migrations_are_found(pg: Connection, database: str, tmp_path: Path) -> None:
    await pg.execute("delete from schema_version where number > 1")
    schema = (await found(pg, database, tmp_path, "none"))["schema"]
    assert schema.what == f"migrations pending: 0002 to {max(known_migrations()):04}"
    assert schema.mend == "run `appservice-bridge migrate`"


def test_pending_migrations_are_said_in_ranges() -> None:
    assert SchemaOutdatedError([2, 3, 5, 8, 9, 10]).told == (
        "migrations pending: 0002 to 0003, 0005, 0008 to 0010"
    )


async def test_a_schema_of_a_newer_release_is_not_to_be_migrated(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    await pg.execute("insert into schema_version (number, name) values (9999, 'newer')")
    schema = (await found(pg, database, tmp_path, "none"))["schema"]
    assert "appservice-bridge migrate" not in schema.mend
    assert "newer" in schema.mend


async def test_a_lane_that_fails_for_long_and_its_dead_letters_are_found(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = write_files(tmp_path, database, [registration("bot", "http://127.0.0.1:9")])
    async with worker(files):
        await pg.execute(
            "update lane set failing_since = now() - interval '1 hour', failed_attempts = 9,"
            " last_outcome = 'connection_refused'"
        )
        await pg.execute(
            "insert into dead_letter (appservice_id, kind, reason) values ('bot', 'event', 'no')"
        )
        one = {finding.code: finding for finding in await examined(pg, files.load())}
    assert one["lane_failing"].level is Level.FAULT
    assert "connection_refused" in one["lane_failing"].what
    assert "retry bot" in one["lane_failing"].mend
    assert one["dead_letters"].level is Level.DOUBT


async def test_a_lane_that_was_halted_and_one_that_is_paused_are_found(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    some = [registration(one, "http://127.0.0.1:9") for one in ("altered", "held", "well")]
    files = write_files(tmp_path, database, some)
    async with worker(files):
        await pg.execute("update lane set paused_at = now() where appservice_id = 'held'")
        await pg.execute(
            "update lane set due_at = 'infinity', last_outcome = 'altered'"
            " where appservice_id = 'altered'"
        )
        halted, paused = await examined(pg, files.load())
    assert (halted.code, halted.level, halted.appservice) == (
        "lane_halted",
        Level.FAULT,
        "altered",
    )
    assert "retry altered" in halted.mend
    assert (paused.code, paused.level, paused.appservice) == ("lane_paused", Level.DOUBT, "held")
    assert "resume held" in paused.mend


def test_a_clock_that_is_off_by_more_than_a_few_seconds_is_found() -> None:
    assert [one.what for one in homeserver.skew("a clock", 42)] == ["a clock is 42 s ahead of ours"]
    assert [one.what for one in homeserver.skew("a clock", -42)] == ["a clock is 42 s behind ours"]
    assert not [*homeserver.skew("a clock", 9)]
    assert not [*homeserver.skew("a clock", None)]


def test_releases_outside_of_the_range_are_found() -> None:
    def codes(release: str | None) -> list[str]:
        return [one.code for one in homeserver.releases(release)]

    assert codes("1.90.0") == ["homeserver_old"]
    assert codes("1.150.0rc1 (b=develop,abc)") == []
    assert codes("2.0.0") == ["homeserver_new"]
    assert codes(None) == codes("main") == ["release_unknown"]
