"""How intake hears of what was captured: seldom enough to cost nothing, and soon."""

import asyncio
import time

import asyncpg
import pytest

from appservice_bridge.routing import intake as intake_module
from appservice_bridge.routing.intake import Intake
from appservice_bridge.storage.notifications import CAPTURE
from tests.support.facts import Connection, attach, outbox, send

BOT = "@b_1:example.org"


async def test_a_burst_wakes_once_in_five_milliseconds_and_whoever_writes_later_wakes_again(
    pg: Connection, database: str
) -> None:
    woken = []
    await attach(pg)
    listener = await asyncpg.connect(database)
    await listener.add_listener(CAPTURE, lambda *_: woken.append(1))
    began = time.monotonic()
    for n in range(1, 151):
        await send(pg, BOT, n)
    windows = (time.monotonic() - began) / 0.005
    await listener.execute("select")  # what was notified has come then
    assert 1 <= len(woken) <= min(windows + 2, 150)
    for n in range(151, 156):
        before = len(woken)
        await asyncio.sleep(0.02)
        await send(pg, BOT, n)
        await listener.execute("select")
        assert len(woken) == before + 1
    await listener.close()


async def test_a_clock_that_was_set_back_does_not_silence_the_triggers(
    pg: Connection, database: str
) -> None:
    await attach(pg)
    await pg.execute(
        "select setval('appservice_bridge.capture_woken',"
        " (extract(epoch from clock_timestamp() + interval '1 hour') * 1000)::bigint)"
    )
    woken = asyncio.Event()
    listener = await asyncpg.connect(database)
    await listener.add_listener(CAPTURE, lambda *_: woken.set())
    await send(pg, BOT, 1)
    await listener.execute("select")
    assert woken.is_set()
    await listener.close()


async def test_who_commits_after_a_wake_up_and_wakes_nobody_is_waited_for(
    pg: Connection, database: str, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "POLL_SECONDS", 300.0)
    monkeypatch.setattr(intake_module, "SWEEP_SECONDS", 600.0)
    monkeypatch.setattr(intake_module, "PATIENCE_SECONDS", 300.0)
    await attach(pg)
    late = await asyncpg.connect(database)
    stop = asyncio.Event()
    running = asyncio.create_task(intake.run(stop))
    await asyncio.sleep(0.1)  # the first look is over
    await late.execute("begin")
    await send(late, BOT, 1, n=1)  # who listens would be woken by its commit: nobody does here
    await send(pg, BOT, 2, n=2)
    intake.wake.set()
    async with asyncio.timeout(60):
        while await outbox(pg) != [2]:
            await asyncio.sleep(0.01)
        await late.execute("commit")
        while await outbox(pg) != [2, 1]:
            await asyncio.sleep(0.01)
    stop.set()
    intake.wake.set()
    await running
    await late.close()
