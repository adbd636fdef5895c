"""What was counted by one word before is parted into what was routed and what was not."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appservice_bridge.blueprint import files
from appservice_bridge.blueprint.files import known_migrations
from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.storage import audit
from appservice_bridge.storage.database import Connection, connect
from appservice_bridge.storage.migrations import migrate

BEFORE = 8


@pytest.fixture
async def old(
    empty_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Connection]:
    """The schema as it was, and the rest of the files laid ready."""
    for number, file in known_migrations().items():
        if number <= BEFORE:
            shutil.copy(str(file), tmp_path)
    conn = await connect(empty_database)
    with monkeypatch.context() as patch:
        patch.setattr(files, "schema_directory", lambda: tmp_path)
        await migrate(conn)
    yield conn
    await conn.close()


async def test_what_was_buried_on_its_way_in_is_refused_and_the_books_balance(
    old: Connection,
) -> None:
    await old.execute(
        """
        insert into ledger values
            ('bot', 'to_device', 'routed', 10), ('bot', 'to_device', 'delivered', 4),
            ('bot', 'to_device', 'dropped', 1), ('bot', 'to_device', 'buried', 5),
            ('bot', 'event', 'buried', 3), ('', 'transaction', 'buried', 2),
            ('bot', 'ephemeral', 'routed', 1), ('bot', 'ephemeral', 'buried', 1),
            ('bot', 'ephemeral', 'refused', 1);
        insert into outbox_head (appservice_id, position) values ('bot', 11);
        insert into lane (appservice_id, epoch, acked_to) values ('bot', 'e', 8);
        insert into outbox (appservice_id, position, kind, captured_at, payload)
        select 'bot', n, 'to_device', now(), '' from generate_series(8, 11) n;
        """
    )
    await migrate(old)
    rows = await old.fetch("select kind, items from ledger where outcome = 'refused'")
    assert {row["kind"]: row["items"] for row in rows} == {
        "to_device": 3,
        "event": 3,
        "transaction": 2,
        "ephemeral": 1,
    }
    async with audit.snapshot(old):
        balances, lacking = await audit.balances(old, lambda _: None)
    assert [each.difference for each in balances] == [0, 0, 0]
    assert balances[2].counts[LedgerOutcome.BURIED] == 2
    assert lacking == 0
