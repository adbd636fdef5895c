"""A write that finds other rows than it must is an error of its own, and nothing is kept."""

import pytest

from appservice_bridge.storage import capture_log, dead_letters, outbox, registrations
from appservice_bridge.storage.capture_log import LogConsumedElsewhereError
from appservice_bridge.storage.database import Connection, Database, connect
from appservice_bridge.storage.outbox import OutboxMissingError, Routed


async def test_routing_to_an_appservice_without_an_outbox_is_refused(db: Database) -> None:
    item = Routed(appservice_id="nobody", kind="event", captured_at=0.0, payload=b"{}")
    with pytest.raises(OutboxMissingError) as refused:
        async with db.transaction() as conn:
            await outbox.append(conn, [item])
    assert refused.value.appservice_ids == ["nobody"]


async def batch_whose_row_is_gone(conn: Connection) -> capture_log.Batch:
    await registrations.set_digest(conn, b"ours")
    await capture_log.append_transaction(conn, "bot", txn_id="1", body=b"{}")
    batch = await capture_log.read(conn, b"ours", max_rows=10, max_bytes=1000)
    assert batch is not None
    assert len(batch.rows) == 1
    await conn.execute("delete from capture_log")
    return batch


async def test_rows_that_someone_else_consumed_are_not_consumed_again(database: str) -> None:
    conn = await connect(database)
    async with conn.transaction():
        batch = await batch_whose_row_is_gone(conn)
        with pytest.raises(LogConsumedElsewhereError) as refused:
            await capture_log.consume(conn, batch)
    await conn.close()
    assert (refused.value.read, refused.value.found) == (1, 0)


async def test_rows_that_someone_else_consumed_are_not_buried(database: str) -> None:
    conn = await connect(database)
    async with conn.transaction():
        batch = await batch_whose_row_is_gone(conn)
        with pytest.raises(LogConsumedElsewhereError):
            await dead_letters.bury_rows(conn, batch, reason="refused")
        assert await conn.fetchval("select count(*) from dead_letter") == 0
    await conn.close()
