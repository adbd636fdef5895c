"""What operators change is put down with the change, and forgotten long after."""

from pathlib import Path
from uuid import UUID

import pytest

from appservice_bridge.cli.context import owners
from appservice_bridge.delivery import operating
from appservice_bridge.routing.announcing import announce
from appservice_bridge.storage import admin_audit
from appservice_bridge.storage.admin_audit import Entry
from appservice_bridge.storage.database import Database
from tests.support.bridge import registration, write_files
from tests.support.command import command
from tests.support.dead_letters import BY, set_aside
from tests.support.facts import Connection


async def entries(db: Database) -> list[Entry]:
    """All there are, the oldest first."""
    async with db.transaction() as conn:
        return (await admin_audit.page(conn, before=admin_audit.NEWEST, most=1000))[::-1]


async def test_what_is_undone_is_not_put_down(db: Database) -> None:
    with pytest.raises(RuntimeError):
        async with db.transaction() as conn:
            await admin_audit.write(conn, BY, "pause", outcome="paused", appservice_id="bot")
            raise RuntimeError
    assert await entries(db) == []


async def test_letters_are_named_and_those_that_stayed_are_not(
    db: Database, pg: Connection
) -> None:
    gone = [UUID(await set_aside(pg, n)) for n in (1, 2)]
    stays = UUID(await set_aside(pg, 3, appservice_id="other"))
    await operating.discard(db, "bot", [*gone, stays], by=BY)
    await operating.discard(db, "bot", gone, by=BY)
    (entry,) = await entries(db)
    assert (entry.name, entry.role, entry.address) == ("cli:test", "cli", None)
    assert (entry.action, entry.appservice_id) == ("discard", "bot")
    assert set(entry.subjects) == set(map(str, gone))
    assert entry.outcome == "2 discarded"


async def test_pages_go_back_from_the_newest(db: Database) -> None:
    async with db.transaction() as conn:
        for n in range(5):
            await admin_audit.write(conn, BY, f"action{n}", outcome="done")
        first = await admin_audit.page(conn, before=admin_audit.NEWEST, most=3)
        then = await admin_audit.page(conn, before=first[-1].audit_id, most=3)
    assert [one.action for one in (*first, *then)] == [f"action{n}" for n in (4, 3, 2, 1, 0)]


async def test_only_what_is_too_old_is_forgotten(db: Database, pg: Connection) -> None:
    async with db.transaction() as conn:
        for n in range(3):
            await admin_audit.write(conn, BY, f"action{n}", outcome="done")
    await pg.execute(
        "update appservice_bridge.admin_audit set at = now() - make_interval(days => $1)"
        " where action <> 'action2'",
        admin_audit.KEEP_DAYS + 1,
    )
    async with db.transaction() as conn:
        assert await admin_audit.forget(conn, batch=1) == 1
        assert await admin_audit.forget(conn, batch=5) == 1
        assert await admin_audit.forget(conn, batch=5) == 0
    assert [one.action for one in await entries(db)] == ["action2"]


async def test_commands_are_put_down_with_the_user_of_the_system(
    db: Database, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "carol")
    files = write_files(tmp_path, database, [registration("bot", "http://127.0.0.1:9")])
    await announce(db, owners(files.load()), epoch="test")
    for arguments in (["pause", "bot"], ["resume", "bot"]):
        assert (await command(*arguments, "--config", str(files.config)))[0] == 0
    seen = await entries(db)
    assert {(one.name, one.role, one.appservice_id) for one in seen} == {
        ("cli:carol", "cli", "bot")
    }
    assert [(one.action, one.outcome) for one in seen] == [
        ("pause", "paused"),
        ("resume", "resumed"),
    ]
