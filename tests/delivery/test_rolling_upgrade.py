"""Workers of the release before on the schema of this one: they go on beside its workers."""

import shutil
from pathlib import Path

import pytest

import appservice_bridge
from appservice_bridge.blueprint.files import known_migrations
from tests.support.appservice import Appservice, appservice
from tests.support.bridge import WorkerProcess, registration, worker_process, write_files
from tests.support.facts import Connection, capture

NEWEST = max(known_migrations())


@pytest.fixture
def release_before(tmp_path: Path) -> Path:
    """Where a package lies that does not know this release's newest migration."""
    package = Path(appservice_bridge.__file__).parent
    where = tmp_path / "release"
    shutil.copytree(package, where / package.name)
    shutil.copytree(package.parent / "schema", where / "schema")
    (where / "schema" / known_migrations()[NEWEST].name).unlink()
    return where


async def came(bot: Appservice, facts: int) -> None:
    await bot.until(lambda: len(bot.to_device) >= facts, within=60)


async def test_the_release_before_goes_on_until_its_worker_is_upgraded(
    pg: Connection, database: str, tmp_path: Path, release_before: Path
) -> None:
    async with appservice() as bot:
        ours = [registration("bot", bot.url, users=["@b_.*"])]
        files = write_files(tmp_path / "old", database, ours)
        async with worker_process(files, release=release_before) as old:
            await capture(pg, "@b_1:example.org", 1)
            await came(bot, 1)
            async with worker_process(write_files(tmp_path / "new", database, ours)) as new:
                await capture(pg, "@b_1:example.org", 2)
                await came(bot, 2)
                assert await old.terminate() == 0
                await capture(pg, "@b_1:example.org", 3)
                await came(bot, 3)
                assert await new.terminate() == 0
        async with worker_process(files, release=release_before):  # rolled back
            await capture(pg, "@b_1:example.org", 4)
            await came(bot, 4)
    assert [item["content"]["n"] for item in bot.to_device] == [1, 2, 3, 4]


async def test_the_release_before_refuses_a_schema_that_is_not_for_it(
    pg: Connection, database: str, tmp_path: Path, release_before: Path
) -> None:
    await pg.execute(
        "update appservice_bridge.schema_version set works_from = null where number = $1", NEWEST
    )
    files = write_files(tmp_path / "old", database, [registration("bot", "http://127.0.0.1:9")])
    old = WorkerProcess(files=files, log=tmp_path / "log", release=release_before)
    await old.start(wait=False)
    assert old.process is not None
    assert await old.process.wait() == 1
    said = " ".join((tmp_path / "log").read_text().split())
    assert f"which needs a release that knows {NEWEST:04}" in said
    assert f"and this release knows {NEWEST - 1:04}: install the release that migrated it" in said
