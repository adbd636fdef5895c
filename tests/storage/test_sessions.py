"""What a session of ours is like, whatever the role's or the database's own settings say."""

import re
from typing import Final

from appservice_bridge.storage.database import Database, connect
from tests.support.facts import Connection

LIMITED: Final = ("idle_in_transaction_session_timeout", "lock_timeout", "statement_timeout")


async def test_rule_13_a_commit_of_ours_is_durable_and_nothing_of_ours_waits_for_ever(
    pg: Connection, database: str
) -> None:
    name = await pg.fetchval("select quote_ident(current_database())")
    for setting in ("synchronous_commit = off", *(f"{one} = 0" for one in LIMITED)):
        await pg.execute(f"alter database {name} set {setting}")
    async with Database.open(database, max_connections=1) as db:
        for used in (db.transaction, db.statement):
            async with used() as conn:
                assert await conn.fetchval("show synchronous_commit") == "on"
                for one in LIMITED:
                    seconds = re.fullmatch(r"(\d+)s", await conn.fetchval(f"show {one}"))
                    assert seconds is not None, one
                    assert 0 < int(seconds[1]) <= 30, one
    conn = await connect(database)
    assert await conn.fetchval("show synchronous_commit") == "on"
    await conn.close()


async def test_what_runs_all_the_time_is_planned_once(pg: Connection, database: str) -> None:
    async with Database.open(database) as db:
        async with db.statement() as conn:
            assert await conn.fetchval("show plan_cache_mode") == "force_generic_plan"
        async with db.transaction() as conn:
            assert await conn.fetchval("show plan_cache_mode") == "auto"
