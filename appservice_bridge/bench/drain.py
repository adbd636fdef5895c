"""A filled outbox is drained: messages per second, from the first request to the last."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from appservice_bridge.bench import filling
from appservice_bridge.bench.figures import Side
from appservice_bridge.bench.receiver import Order, Seen
from appservice_bridge.bench.scenario import MEMORY, RATE, Figures, Scenario
from appservice_bridge.bench.stage import Running, Stage, connected


def rate(seen: Seen) -> float:
    """Messages per second behind the first request; the start of a process is not in it.

    Raises:
        ValueError: there was only one request, or none.
    """
    if seen.requests < 2:
        raise ValueError("too few messages for more than one transaction")
    return (seen.messages - seen.first_messages) * 1e9 / (seen.last_ns - seen.first_ns)


async def drained(stage: Stage, running: Running, messages: int) -> Figures:
    """Wait until all came: messages per second, and the most memory in MB."""
    await stage.until(messages, running)
    return {"": rate(await stage.receivers.seen()), MEMORY: running.peak_memory_mb()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """How much waits for how many; each side drains a new database.

    Attributes:
        full: messages; `quick` is their number with --quick.
        users: of each appservice.
    """

    appservices: int
    full: int
    quick: int
    users: int = filling.USERS

    async def bridge(self, stage: Stage) -> Figures:
        """Of the bridge."""
        async with (
            self.waiting(stage, filling.fill_outbox) as (dsn, messages),
            stage.worker(dsn, self.appservices, ready=False) as worker,
        ):
            return await drained(stage, worker, messages)

    async def naive(self, stage: Stage) -> Figures:
        """Of the naive outbox."""
        async with (
            self.waiting(stage, filling.fill_naive) as (dsn, messages),
            stage.yardstick("naive", dsn, self.appservices) as naive,
        ):
            return await drained(stage, naive, messages)

    async def ceiling(self, stage: Stage) -> Figures:
        """Of the bare loop."""
        async with (
            self.waiting(stage, filling.fill_outbox) as (dsn, messages),
            stage.yardstick("ceiling", dsn, self.appservices) as ceiling,
        ):
            return await drained(stage, ceiling, messages)

    @asynccontextmanager
    async def waiting(self, stage: Stage, fill: filling.Fill) -> AsyncIterator[tuple[str, int]]:
        """A database where they wait, and how many."""
        messages = stage.size(self.full, quick=self.quick)
        async with stage.database() as dsn:
            async with connected(dsn) as conn:
                await fill(conn, appservices=self.appservices, messages=messages, users=self.users)
            await stage.receivers.order(Order())
            yield dsn, messages


def _scenario(drain: Drain, *, naive: int, small: Drain | None = None) -> Scenario:
    """`naive` messages wait for the naive outbox: it takes long enough with fewer."""
    beside = "" if small is None else f"; beside {small.full:,} for {small.appservices}"
    few = Drain(appservices=drain.appservices, full=naive, quick=drain.quick // 4)
    who = "1 appservice" if drain.appservices == 1 else f"{drain.appservices:,} appservices"
    sides = {Side.BRIDGE: drain.bridge, Side.NAIVE: few.naive, Side.CEILING: drain.ceiling}
    return Scenario(
        name=f"drain-{drain.appservices}",
        about=f"{drain.full:,} messages wait for {who}{beside}",
        units=RATE,
        sides=sides if small is None else sides | {Side.SMALL: small.bridge},
        quick=drain.appservices in (1, 64),
    )


ONE: Final = Drain(appservices=1, full=200_000, quick=20_000)
EIGHT: Final = Drain(appservices=8, full=200_000, quick=32_000)
SIXTY_FOUR: Final = Drain(appservices=64, full=256_000, quick=64_000)
THOUSAND: Final = Drain(appservices=1000, full=1_000_000, quick=80_000)
AS_MANY_FOR_FEW: Final = Drain(appservices=64, full=1_000_000, quick=64_000)

SCENARIOS: Final = (
    _scenario(ONE, naive=40_000),
    _scenario(EIGHT, naive=40_000),
    _scenario(SIXTY_FOUR, naive=64_000),
    _scenario(THOUSAND, naive=100_000, small=AS_MANY_FOR_FEW),
)
