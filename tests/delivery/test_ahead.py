"""What is built ahead is of no more use when its lane goes another way; what is wrong in it is."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from appservice_bridge.delivery import building
from appservice_bridge.delivery import lane as lane_module
from tests.support.appservice import appservice
from tests.support.bridge import registration, worker, write_files
from tests.support.facts import Connection, capture


async def test_a_fault_in_building_ends_the_worker_though_the_attempt_before_it_failed(
    pg: Connection, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = building.build_ahead

    async def faulty(*arguments: Any) -> Any:
        if arguments[-1].after:
            raise ZeroDivisionError
        return await build(*arguments)

    monkeypatch.setattr(lane_module, "build_ahead", faulty)
    async with appservice() as bot:
        bot.answer = lambda _: (500, {}, b"")
        registered = [registration("bot", bot.url, users=["@b_.*"])]
        files = write_files(tmp_path, database, registered, delivery={"max_items": 1})
        for n in (1, 2, 3):
            await capture(pg, "@b_1:example.org", n)
        with pytest.raises(ExceptionGroup) as ended:
            async with asyncio.timeout(30), worker(files):
                await asyncio.Event().wait()
    assert ended.group_contains(ZeroDivisionError)
