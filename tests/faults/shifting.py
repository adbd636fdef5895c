"""Clocks that jump, with libfaketime: those of workers, and that of Postgres."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from appservice_bridge.dev.postgres import EmbeddedPostgres
from appservice_bridge.dev.process import ChildCommand
from tests.faults.killing import moments
from tests.faults.playing import NotRunError
from tests.faults.stage import POSTGRES, Stage

LIBRARIES: Final = (
    *Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"),
    *Path("/usr/lib").glob("faketime/libfaketimeMT.so.1"),
)
JUMPS_SECONDS: Final = (-7200, -60, -11, -1, 0, 0, 1, 11, 60, 7200)


class JumpingPostgres(EmbeddedPostgres):
    """A Postgres whose clock stands where a file says."""

    clock: Path

    def _command(self) -> ChildCommand:
        command = EmbeddedPostgres._command(self)
        return replace(command, environment={**(command.environment or {}), **faked(self.clock)})


def faked(clock: Path) -> Mapping[str, str]:
    """What makes a process take its time from a file; intervals stay true."""
    return {
        "LD_PRELOAD": str(LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


def _require_faketime() -> None:
    if not LIBRARIES:
        raise NotRunError("there is no libfaketime here; Debian's package is libfaketime")


@asynccontextmanager
async def clock_of_postgres(stage: Stage) -> AsyncIterator[None]:
    _require_faketime()
    stage.postgres.port.release()
    stage.postgres = jumping = JumpingPostgres(stage.directory / "postgres", POSTGRES)
    jumping.clock = stage.directory / "postgres.clock"
    set_clock(jumping.clock, 0)
    yield


@asynccontextmanager
async def clocks_of_workers(_stage: Stage) -> AsyncIterator[None]:
    _require_faketime()
    yield


def set_clock(clock: Path, seconds: int) -> None:
    """It is moved there at once, so that nobody reads half of it."""
    making = clock.with_suffix(".new")
    making.write_text(f"{seconds:+d}\n")
    making.chmod(0o644)
    making.replace(clock)


async def jump_workers(stage: Stage, seconds: float) -> None:
    clocks = []
    for number, part in enumerate(stage.workers):
        clocks.append(stage.directory / f"worker_{number}.clock")
        set_clock(clocks[-1], 0)
        part.with_environment(**faked(clocks[-1]))
        stage.kill(part)
        part.start()
    await stage.workers_ready()
    async for _ in moments(stage, seconds, 0.5, 3.0):
        set_clock(stage.chance.choice(clocks), stage.chance.choice(JUMPS_SECONDS))
        stage.kills["worker's clock", "jump"] += 1
        if stage.chance.random() < 0.2:
            stage.kill(stage.chance.choice(stage.workers))
        stage.count_deaths()


async def jump_postgres(stage: Stage, seconds: float) -> None:
    assert isinstance(stage.postgres, JumpingPostgres)
    async for _ in moments(stage, seconds, 0.5, 5.0):
        set_clock(stage.postgres.clock, stage.chance.choice(JUMPS_SECONDS))
        stage.kills["postgres' clock", "jump"] += 1
        if stage.chance.random() < 0.2:
            stage.kill(stage.chance.choice(stage.workers))
        stage.count_deaths()
    set_clock(stage.postgres.clock, 0)
    await asyncio.sleep(1)
