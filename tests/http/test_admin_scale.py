"""A thousand appservices at one look: the same few statements as for one."""

import asyncio
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

from appservice_bridge.delivery.history import History
from appservice_bridge.http import admin_overview
from appservice_bridge.http.admin_overview import Overview
from appservice_bridge.storage import overview
from appservice_bridge.storage.database import Database
from tests.support.bridge import registration, write_files
from tests.support.facts import Connection

MANY: Final = 1000
BACKLOG: Final = 20
FILL: Final = f"""
set search_path = appservice_bridge;
insert into appservice select 'bot' || n, '', now() from generate_series(1, {MANY}) n;
insert into worker values (gen_random_uuid(), 'here:1', now(), now() + interval '50 seconds');
insert into lane (appservice_id, epoch, worker_id)
select appservice_id, 'e', (select worker_id from worker) from appservice;
insert into outbox_head select appservice_id, {BACKLOG}, 0 from appservice;
insert into outbox (appservice_id, position, kind, captured_at, payload)
select appservice_id, n, case when n % 2 = 0 then 'to_device' else 'event' end, now(), '{{}}'
  from appservice, generate_series(1, {BACKLOG}) n;
insert into ledger select appservice_id, 'event', 'delivered', 5 from appservice;
insert into dead_letter (appservice_id, kind, reason)
select appservice_id, 'event', 'refused' from appservice, generate_series(1, 3);
"""


async def test_a_thousand_appservices_take_no_more_statements_than_one(
    pg: Connection, db: Database, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_files(tmp_path, database, [registration("bot", "http://127.0.0.1:9")])
    shown = Overview(db, files.load(), History())
    counted: list[Any] = []
    execute = asyncpg.Connection._execute  # type: ignore[attr-defined]

    async def counting(self: Any, query: str, *more: Any, **named: Any) -> Any:
        counted.append(query)
        return await execute(self, query, *more, **named)

    monkeypatch.setattr(asyncpg.Connection, "_execute", counting)
    assert len(json.loads(await shown.body())["appservices"]) == 1
    for_one = len(counted)
    await pg.execute(FILL)
    await pg.execute("analyze")
    await shown.body()
    counted.clear()
    body = await shown.body()
    assert len(counted) == for_one == 3  # a busy worker waits long for each answer
    told = json.loads(body)["appservices"]
    assert len(told) == MANY + 1
    assert {one["backlog"] for one in told} == {0, BACKLOG}
    assert {one["dead_letters"] for one in told} == {0, 3}


async def test_while_a_thousand_are_told_deliveries_have_their_turn(
    pg: Connection, db: Database, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_files(tmp_path, database, [registration("bot", "http://127.0.0.1:9")])
    shown = Overview(db, files.load(), History())
    await pg.execute(FILL)
    turn = 0
    lanes_in_turn: Counter[tuple[str, int]] = Counter()

    async def others() -> None:
        nonlocal turn
        for turn in itertools.count():  # noqa: B007
            await asyncio.sleep(0)

    def counting(name: str, work: Any) -> Any:
        def counted(*args: Any, **named: Any) -> Any:
            lanes_in_turn[name, turn] += 1
            return work(*args, **named)

        return counted

    monkeypatch.setattr(admin_overview, "appservice", counting("told", admin_overview.appservice))
    monkeypatch.setattr(overview, "LaneView", counting("read", overview.LaneView))
    task = asyncio.create_task(others())
    await shown.body()
    task.cancel()
    assert sum(lanes_in_turn.values()) == 2 * MANY
    assert max(lanes_in_turn.values()) <= 100
