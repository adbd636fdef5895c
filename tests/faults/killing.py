"""Processes that are killed or frozen."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from tests.faults.stage import Part, Stage


async def moments(stage: Stage, seconds: float, low: float, high: float) -> AsyncIterator[None]:
    """Moments at random, until the time is up."""
    ends = time.monotonic() + seconds
    while True:
        pause = stage.chance.uniform(low, high)
        if time.monotonic() + pause > ends:
            await asyncio.sleep(max(0, ends - time.monotonic()))
            return
        await asyncio.sleep(pause)
        yield


async def kill_workers(stage: Stage, seconds: float) -> None:
    """The next one is killed while the last one still starts, so that someone mostly works."""
    async for _ in moments(stage, seconds, 0.3, 1.0):
        part = stage.chance.choice(stage.workers)
        stage.kill(part)
        stage.count_deaths()


async def kill_postgres(stage: Stage, seconds: float) -> None:
    async for _ in moments(stage, seconds, 1.0, 3.5):
        if stage.chance.random() < 0.6:
            stage.kill_postgres()
            await asyncio.sleep(stage.chance.uniform(0, 0.5))
            stage.start_postgres()
        else:
            kill_session(stage)
        stage.count_deaths()


def kill_session(stage: Stage) -> None:
    """Postgres then ends all its sessions, and recovers."""
    sessions = _sessions(stage)
    if sessions:
        with suppress(ProcessLookupError):
            os.kill(stage.chance.choice(sessions), signal.SIGKILL)
            stage.kills["postgres session", "SIGKILL"] += 1


def _sessions(stage: Stage) -> list[int]:
    """Processes of Postgres that serve a connection, ours among them."""
    if not stage.postgres.child.running:
        return []
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(stage.postgres.child.pid).children()
        return [one.pid for one in children if _serves(one)]
    return []


def _serves(one: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return "127.0.0.1" in " ".join(one.cmdline())
    return False


async def kill_appservices(stage: Stage, seconds: float) -> None:
    async for _ in moments(stage, seconds, 0.1, 0.6):
        stage.kill(stage.chance.choice(list(stage.receivers.values())))
        await asyncio.sleep(stage.chance.uniform(0, 0.3))
        stage.count_deaths()


async def stop_workers(stage: Stage, seconds: float) -> None:
    """One or two of them freeze; another one takes their lanes, and then they wake up."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        frozen = stage.chance.sample(stage.workers, stage.chance.choice((1, 2)))
        for part in frozen:
            stage.kill(part, signal.SIGSTOP)
        await asyncio.sleep(stage.chance.choice((0.5, 3, 11, 13)))
        for part in frozen:
            stage.kill(part, signal.SIGCONT)
        await asyncio.sleep(stage.chance.uniform(0.5, 2))
        stage.count_deaths()


async def stop_backends(stage: Stage, seconds: float) -> None:
    async for _ in moments(stage, seconds, 0.3, 1.5):
        sessions = _sessions(stage)
        chosen = stage.chance.sample(sessions, min(len(sessions), 3))
        _signal_all(stage, chosen, signal.SIGSTOP)
        try:
            await asyncio.sleep(stage.chance.uniform(0.1, 3))
        finally:  # nobody else would ever wake them
            _signal_all(stage, chosen, signal.SIGCONT)


def _signal_all(stage: Stage, pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            stage.kills["postgres session", number.name] += 1


class NoSuchCommitError(Exception):
    """No worker came to a commit that all were to die at: it has another name by now, perhaps."""

    def __init__(self, never: Iterable[str]) -> None:
        super().__init__(", ".join(sorted(never)))


async def kill_at_commits(stage: Stage, seconds: float, only: Collection[str] = ()) -> None:
    """Each worker is told where to die next; it is started again when it did.

    Which kinds of commit there are, the workers say themselves, unless it is to be `only` some.
    """
    seen = stage.directory / "commits"
    for part in stage.workers:
        part.with_environment(FAULTS_LIST=str(seen))
        stage.kill(part)
        part.start()
    await stage.workers_ready()
    await asyncio.sleep(min(5.0, seconds / 3))  # and some time to do each of them once
    points = _Points(stage, seen, only)
    ends = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for part in stage.workers[1:]:  # the first one is there to go on with what they left
            group.create_task(_die_and_die_again(stage, part, points, ends))
    for part in stage.workers:
        part.with_environment(FAULTS_DIE="")
    if never := set(only) - set(seen.read_text().split()):
        raise NoSuchCommitError(never)


class _Points:
    """Kinds of commits, each before and after, in turn and in an order drawn by lot."""

    def __init__(self, stage: Stage, seen: Path, only: Collection[str]) -> None:
        self._stage = stage
        self._only = only
        self._seen = seen
        self._left: list[str] = []

    def take(self) -> str:
        if not self._left:
            kinds = sorted(self._only or set(self._seen.read_text().split()))
            self._left = [f"{kind} {when}" for kind in kinds for when in ("before", "after")]
            self._stage.chance.shuffle(self._left)
        return self._left.pop()


async def _die_and_die_again(stage: Stage, part: Part, points: _Points, ends: float) -> None:
    while time.monotonic() < ends:
        point = points.take()
        part.with_environment(FAULTS_DIE=f"{point} {stage.chance.choice((1, 2, 3))}")
        stage.kill(part)
        part.start()
        patience = min(time.monotonic() + 15, ends + 5)
        while part.running and time.monotonic() < patience:
            await asyncio.sleep(0.05)
        if not part.running and not part.counted:
            part.counted = True
            stage.kills[f"worker, at {point.split()[0]}", "SIGKILL"] += 1
