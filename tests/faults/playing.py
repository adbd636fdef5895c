"""Plays one scenario: start everything, let things happen, heal, drain, judge."""

import asyncio
import random
import shutil
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.judging import Exempt, Verdict, judge
from tests.faults.stage import Layout, Stage
from tests.faults.streams import Accepted, Came, appservice_of, parse_came, read_accepted, read_came


class NotRunError(Exception):
    """This machine cannot do it; the message says why."""


@asynccontextmanager
async def nothing_around(_stage: Stage) -> AsyncIterator[None]:
    yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What happens to which parts.

    Attributes:
        happens: runs for the given seconds, and then ends; whatever it left broken is healed.
        around: entered before anything runs, left when nothing does any more.
        seconds: how long it lasts in the long form.
        short_seconds: the same in the short form; 0: not in it.
        quiet_seconds: how long nothing may come for, while something is to come.
        drain_seconds: how long is waited in all, for as long as something comes.
    """

    name: str
    says: str
    happens: Callable[[Stage, float], Awaitable[None]]
    layout: Layout = field(default_factory=Layout)
    around: Callable[[Stage], AbstractAsyncContextManager[None]] = nothing_around
    exempt: Exempt = field(default_factory=Exempt)
    seconds: float = 60.0
    short_seconds: float = 6.0
    quiet_seconds: float = 30.0  # three times a lease: whoever had something to say has said it
    drain_seconds: float = 900.0  # a busy machine takes its time


@dataclass(slots=True, kw_only=True)
class Row:
    """A line of the table."""

    scenario: str
    kills: Mapping[tuple[str, str], int] = field(default_factory=Counter)
    verdict: Verdict = field(default_factory=Verdict)
    seed: int = 0
    seconds: float = 0.0
    not_run: str | None = None
    failed: str | None = None

    @property
    def clean(self) -> bool:
        return self.failed is None and self.verdict.clean


async def play(
    scenario: Scenario,
    *,
    seconds: float,
    seed: int,
    broken: str | None = None,
    keep: bool = False,
    drain_seconds: float | None = None,
) -> Row:
    """One run; `broken` names a promise that the workers break on purpose.

    `drain_seconds` is what the scenario says, unless given.
    """
    directory = Path(tempfile.mkdtemp(prefix="appservice-bridge-faults-"))
    chance = random.Random(seed ^ zlib.crc32(scenario.name.encode()))
    row = Row(scenario=scenario.name, seed=seed)
    began = time.monotonic()
    stage = Stage(directory, scenario.layout, chance)
    stage.broken = broken
    try:
        async with scenario.around(stage):
            try:
                await _run(stage, scenario, seconds, drain_seconds or scenario.drain_seconds)
            except Exception as error:
                row.failed = f"{type(error).__name__}: {error}"
            finally:
                stage.close()
            row.verdict = _judged(stage, scenario)
    except NotRunError as reason:
        row.not_run = str(reason)
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)
    row.kills, row.seconds = stage.kills, time.monotonic() - began
    return row


async def _run(stage: Stage, scenario: Scenario, seconds: float, drain_seconds: float) -> None:
    await stage.prepare()
    await stage.start()
    await stage.send()
    await scenario.happens(stage, seconds)
    stage.heal()
    await stage.finish_sending()
    await _drained(stage, scenario, drain_seconds)


async def _drained(stage: Stage, scenario: Scenario, within: float) -> None:
    """Until everything has come, or nothing comes any more."""
    exempt, quiet = scenario.exempt, scenario.quiet_seconds
    accepted = [one for log in stage.sent_logs for one in read_accepted(log)]
    owed = {
        one: sum(_owed(each, exempt) for each in accepted if appservice_of(each.stream) == one)
        for one in stage.layout.ids
        if one not in exempt.loss
    }
    counts = {one: _Count(stage.received_log(one)) for one in owed}
    deadline, moved, last = time.monotonic() + within, time.monotonic(), -1
    while time.monotonic() < min(deadline, moved + quiet):
        stage.count_deaths()
        came = {one: counts[one].now() for one in owed}
        if all(came[one] >= owed[one] for one in owed):
            return
        if (total := sum(came.values())) != last:
            last, moved = total, time.monotonic()
        await asyncio.sleep(0.3)


def _owed(accepted: Accepted, exempt: Exempt) -> int:
    numbers = range(accepted.first, accepted.last + 1)
    return sum(not exempt.buried(accepted.stream, number) for number in numbers)


class _Count:
    """How many facts an appservice took: each transaction once. Reads on where it stopped."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._read_bytes = 0
        self._items: dict[str, int] = {}
        self._taken: set[str] = set()

    def now(self) -> int:
        for one in self._more():
            if one.status is None:
                self._items[one.txn_id] = len(one.items)
            elif one.status < 300:
                self._taken.add(one.txn_id)
        return sum(self._items.get(txn_id, 0) for txn_id in self._taken)

    def _more(self) -> list[Came]:
        if not self._log.exists():
            return []
        with self._log.open("rb") as file:
            file.seek(self._read_bytes)
            whole = file.read().rpartition(b"\n")[0]
        self._read_bytes += len(whole)
        return parse_came(whole)


def _judged(stage: Stage, scenario: Scenario) -> Verdict:
    accepted = [one for log in stage.sent_logs for one in read_accepted(log)]
    logs = {one: read_came(stage.received_log(one)) for one in stage.layout.ids}
    return judge(accepted, logs, scenario.exempt)
