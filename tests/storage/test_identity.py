"""Transaction ids never repeat: another database, or another timeline, means another epoch."""

from appservice_bridge.storage.database import Database
from appservice_bridge.storage.identity import current_epoch
from tests.support.facts import Connection

LANE = "select epoch from appservice_bridge.lane"
IDENTITY = "update appservice_bridge.database_identity set "


async def a_lane(pg: Connection, epoch: str) -> None:
    await pg.execute(
        "insert into appservice_bridge.lane (appservice_id, epoch) values ('bot', $1)", epoch
    )


async def test_the_same_database_keeps_its_epoch(db: Database) -> None:
    async with db.transaction() as conn:
        first = await current_epoch(conn)
    async with db.transaction() as conn:
        assert await current_epoch(conn) == first


async def test_a_connection_to_another_timeline_renews_the_epoch_before_it_is_used(
    pg: Connection, database: str, db: Database
) -> None:
    async with db.transaction() as conn:
        first = await current_epoch(conn)
    for change in ("timeline = timeline - 1", "system_identifier = '1'"):
        await pg.execute("delete from appservice_bridge.lane")
        await a_lane(pg, first)
        await pg.execute(IDENTITY + change)
        async with Database.open(database, on_connect=current_epoch):
            assert await pg.fetchval(LANE) != first


async def test_an_operator_who_restored_a_dump_gets_a_new_epoch_by_saying_so(
    pg: Connection, db: Database
) -> None:
    async with db.transaction() as conn:
        first = await current_epoch(conn)
        await a_lane(pg, first)
        second = await current_epoch(conn, restored=True)
    assert second != first
    assert await pg.fetchval(LANE) == second
