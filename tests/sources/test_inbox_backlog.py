"""The comparison of inbox and log beside a huge backlog, with statistics from before it."""

import time
from typing import Final

from appservice_bridge.routing.intake import Intake
from appservice_bridge.sources.reconciler import reconcile_once
from appservice_bridge.storage import inbox
from appservice_bridge.storage.database import Database, connect
from tests.support.facts import Connection, attach
from tests.support.plans import MODES, planned

ROWS: Final = 200_000
IN_THE_INBOX: Final = 1000
MISSED: Final = 300
# A backlog that was consumed leaves many pages with few rows: who looks at the statistics then
# takes the next backlog for a handful of rows.
BACKLOG: Final = f"""
alter table capture_log set (autovacuum_enabled = off);
insert into capture_log (seq, kind, user_id, device_id, stream_id, body)
select -n, 'to_device', '@gone:example.org', 'DEV', n, repeat('x', 900)::bytea
  from generate_series(1, {ROWS}) n;
delete from capture_log where seq > -{ROWS};
"""
NEXT_BACKLOG: Final = f"""
insert into capture_log (kind, user_id, device_id, stream_id, body)
select 'to_device', '@b_' || n % 500 || ':example.org', 'DEV', n, repeat('x', 900)::bytea
  from generate_series(1, {ROWS}) n;
"""
INBOX: Final = f"""
alter table public.device_inbox disable trigger user;
insert into public.device_inbox (user_id, device_id, stream_id, message_json)
select '@b_' || n % 500 || ':example.org', 'DEV', n, '{{}}'
  from generate_series({ROWS - IN_THE_INBOX + MISSED + 1}, {ROWS + MISSED}) n;
alter table public.device_inbox enable trigger user;
"""


async def fill(pg: Connection) -> None:
    await attach(pg)
    await pg.execute(BACKLOG)
    await pg.execute("vacuum analyze appservice_bridge.capture_log")
    await pg.execute(NEXT_BACKLOG)
    await pg.execute(INBOX)


async def test_beside_a_huge_backlog_the_reconciler_still_finds_what_was_left_out(
    pg: Connection, db: Database, intake: Intake
) -> None:
    await fill(pg)
    began = time.monotonic()
    assert await reconcile_once(db) == MISSED
    assert time.monotonic() - began < 15  # each row on its own takes most of a minute


async def test_the_log_is_joined_and_what_was_taken_is_probed(
    pg: Connection, database: str
) -> None:
    await fill(pg)
    conn = await connect(database)
    async with conn.transaction():
        await conn.execute(inbox.COMPARE_AS_SETS)
        for mode in MODES:
            ran = await planned(conn, inbox.APPEND_MISSED, "0, 1000", mode)
            kinds = [node["Node Type"] for node in ran]
            assert "Nested Loop" not in kinds
            assert {"Hash Join", "Merge Join"} & set(kinds)
            probes = [
                str(node.get("Relation Name"))
                for node in ran
                if node.get("Parent Relationship") == "SubPlan"
            ]
            assert sorted(probes) == ["foreign_user", "taken"]
    await conn.close()
