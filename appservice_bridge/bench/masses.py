"""Very much of something: users, waiting device list changes, waiting messages."""

from typing import Final

from appservice_bridge.bench import filling
from appservice_bridge.bench.drain import Drain, drained, rate
from appservice_bridge.bench.figures import Side
from appservice_bridge.bench.receiver import Order
from appservice_bridge.bench.scenario import MEMORY, RATE, Figures, Scenario
from appservice_bridge.bench.stage import Stage, connected

MILLION_USERS: Final = Drain(appservices=1, full=1_000_000, quick=40_000, users=1_000_000)
MILLION_MESSAGES: Final = Drain(appservices=1, full=1_000_000, quick=40_000)
TEN_MILLION_MESSAGES: Final = Drain(appservices=1, full=10_000_000, quick=200_000)
GIB: Final = 2**30

FILL_TRACKED: Final = """
-- bench.fill_tracked: whom the appservice was told about
insert into tracked (appservice_id, user_id)
select 'as0000', '@as0000_' || lpad(n::text, 7, '0') || ':example.org'
  from generate_series(0, $1::int - 1) n
"""

FILL_KEYS: Final = """
-- bench.fill_keys: nothing of them waits
insert into device_key_state (appservice_id, user_id, device_id, waiting, recount)
select 'as0000', '@as0000_' || lpad(n::text, 7, '0') || ':example.org', 'DEV', false, false
  from generate_series(0, $1::int - 1) n
"""

FILL_LISTS: Final = """
-- bench.fill_lists
insert into device_list_update (appservice_id, user_id, change)
select 'as0000', '@user_' || lpad(n::text, 7, '0') || ':example.org', 'changed'
  from generate_series(1, $1::int) n
"""


async def _million_users(stage: Stage) -> Figures:
    async with MILLION_USERS.waiting(stage, filling.fill_outbox) as (dsn, messages):
        async with connected(dsn) as conn:
            users = stage.size(MILLION_USERS.users, quick=100_000)
            await conn.execute(FILL_TRACKED, users)
            await conn.execute(FILL_KEYS, users)
            await conn.execute("vacuum analyze tracked, device_key_state")
            await conn.execute("checkpoint")
        async with stage.worker(dsn, 1, ready=False) as worker:
            return await drained(stage, worker, messages)


async def _ten_million(stage: Stage) -> Figures:
    """How fast the first tenth goes while all that is behind it waits."""
    async with (
        TEN_MILLION_MESSAGES.waiting(stage, filling.fill_outbox) as (dsn, messages),
        stage.worker(dsn, 1, ready=False) as worker,
    ):
        return await drained(stage, worker, messages // 10)


async def _lists(stage: Stage, changes: int) -> Figures:
    async with stage.database() as dsn:
        async with connected(dsn) as conn:
            await conn.execute(FILL_LISTS, changes)
            await conn.execute("vacuum analyze device_list_update")
            await conn.execute("checkpoint")
        await stage.receivers.order(Order(marker='"@user_'))
        async with stage.worker(dsn, 1, ready=False) as worker:
            await stage.until(changes, worker)
            seen = await stage.receivers.seen()
            return {"": rate(seen), MEMORY: worker.peak_memory_mb()}


async def _many_lists(stage: Stage) -> Figures:
    return await _lists(stage, stage.size(1_000_000, quick=20_000))


async def _few_lists(stage: Stage) -> Figures:
    return await _lists(stage, stage.size(50_000, quick=10_000))


SCENARIOS: Final = (
    Scenario(
        name="million-users",
        about="one appservice has a million users and was told of each; beside one with a hundred",
        units=RATE,
        sides={Side.BRIDGE: _million_users, Side.SMALL: MILLION_MESSAGES.bridge},
        free_bytes=8 * GIB,
    ),
    Scenario(
        name="device-lists",
        about="a million device list changes wait for one appservice; beside 50,000",
        units={"": "changes/s", MEMORY: "MB"},
        sides={Side.BRIDGE: _many_lists, Side.SMALL: _few_lists},
    ),
    Scenario(
        name="waiting-10m",
        about="10 million messages wait: how fast the first million goes; beside one million",
        units=RATE,
        sides={Side.BRIDGE: _ten_million, Side.SMALL: MILLION_MESSAGES.bridge},
        single=True,
        free_bytes=30 * GIB,
    ),
)
