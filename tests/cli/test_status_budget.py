"""`status` shows how much of the budget is used."""

import json
from pathlib import Path

from tests.support.bridge import registration, write_files
from tests.support.command import command
from tests.support.facts import Connection


async def test_status_shows_the_budget_and_says_when_it_is_used_up(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    one = [registration("bot", "http://127.0.0.1:9")]
    files = write_files(tmp_path, database, one, budget={"total_bytes": 10_485_760})
    config = ("--config", str(files.config))
    shown = json.loads((await command("status", "--json", *config))[1])["budget"]
    used = await pg.fetchval(
        "select sum(pg_total_relation_size(oid))::bigint from pg_class"
        " where relnamespace = 'appservice_bridge'::regnamespace and relkind = 'r'"
    )
    assert shown == {
        "used_bytes": used,
        "limit_bytes": 10_485_760,
        "appservice_limit_bytes": 10_485_760,
        "used_up": False,
    }
    percent = f"({used / 10_485_760:.0%})"
    line = (await command("status", *config))[1].splitlines()[-1]
    assert line.startswith("budget: ")
    assert line.endswith(f" of 10.0 MiB used {percent}")
    await pg.execute("update appservice_bridge.capture_watch set keys_only = true")
    line = (await command("status", *config))[1].splitlines()[-1]
    assert line.endswith("; used up, nothing but keys is stored")
