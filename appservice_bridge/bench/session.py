"""One run: rounds in which every side of a scenario is measured, one after the other."""

import asyncio
import shutil
import signal
import tempfile
from collections import defaultdict
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from appservice_bridge.bench.figures import Series, Side, amount
from appservice_bridge.bench.scenario import MEMORY, Figures, Scenario
from appservice_bridge.bench.stage import Stage
from appservice_bridge.domain.errors import BridgeError

T = TypeVar("T")
ANY_BYTES: Final = 3 * 2**30
"""Of disk, that a scenario may take which says nothing else."""


class NoSpaceError(BridgeError):
    """The disk has too little room; free some, set TMPDIR to another, or leave the scenario out."""

    def __init__(self, scenario: str, needed: int, free: int, directory: Path) -> None:
        super().__init__(
            f"{scenario} needs {needed / 2**30:.0f} GiB of disk, and {directory} has "
            f"{free / 2**30:.1f}; set TMPDIR to a directory with more"
        )
        self.scenario = scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is asked for.

    Attributes:
        rounds: of each scenario but those where one is enough.
    """

    scenarios: Sequence[Scenario]
    rounds: int
    quick: bool


def require_space(scenarios: Sequence[Scenario], directory: Path | None = None) -> None:
    """Look at the disk before anything is started.

    Raises:
        NoSpaceError: a scenario would fill it.
    """
    where = directory or Path(tempfile.gettempdir())
    free = shutil.disk_usage(where).free
    for scenario in scenarios:
        needed = max(scenario.free_bytes, ANY_BYTES)
        if free < needed:
            raise NoSpaceError(scenario.name, needed, free, where)


class _Run:
    """Measures scenarios on a stage, and says how far it is."""

    def __init__(self, options: Options, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self.progress = Progress(*columns, TimeElapsedColumn(), console=console)
        self._options = options
        total = sum(self._rounds(one) * len(one.sides) for one in options.scenarios)
        self._task = self.progress.add_task("Postgres starts", total=total)

    def _rounds(self, scenario: Scenario) -> int:
        return 1 if scenario.single else self._options.rounds

    async def measure(self, scenario: Scenario, stage: Stage) -> list[Series]:
        """All rounds of one scenario."""
        samples: dict[Side, list[Figures]] = defaultdict(list)
        for number in range(self._rounds(scenario)):
            for side in turned(tuple(scenario.sides), number):
                what = f"{scenario.name}, round {number + 1}, {side}"
                self.progress.update(self._task, description=what)
                samples[side].append(await scenario.sides[side](stage))
                self.progress.advance(self._task)
                self._note(scenario, side, samples[side][-1])
        return list(series(scenario, samples))

    def _note(self, scenario: Scenario, side: Side, figures: Figures) -> None:
        told = ", ".join(
            f"{key + ' ' if key else ''}{amount(figures[key])} {unit}"
            for key, unit in scenario.units.items()
            if key in figures
        )
        line = f"  {scenario.name}, {side}: {told}"
        self.progress.console.print(line, highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a run came to.

    Attributes:
        failed: why there are no figures of a scenario, by its name.
    """

    found: Sequence[Series]
    failed: Mapping[str, str]


async def measured(options: Options, console: Console) -> Measured:
    """Measure everything, and show on the console how far it is.

    A scenario that fails costs the others nothing: they took long. Nor does who interrupts the run,
    once something was measured.

    Raises:
        NoSpaceError: before anything was started.
        ChildDiedError: Postgres or the receivers did not start.
    """
    require_space(options.scenarios)
    run = _Run(options, console)
    found: list[Series] = []
    failed: dict[str, str] = {}
    with run.progress:
        async with Stage.open(quick=options.quick) as stage:
            try:
                for scenario in options.scenarios:
                    found += await _measure(run, scenario, stage, failed)
            except asyncio.CancelledError:
                if not found:
                    raise
                known = {one.scenario.partition("/")[0] for one in found} | failed.keys()
                failed |= {
                    one.name: "interrupted" for one in options.scenarios if one.name not in known
                }
    return Measured(found=found, failed=failed)


async def _measure(
    run: _Run, scenario: Scenario, stage: Stage, failed: dict[str, str]
) -> list[Series]:
    try:
        return await run.measure(scenario, stage)
    except* BridgeError as group:
        failed[scenario.name] = str(first(group))
        run.progress.console.print(
            f"  {scenario.name} failed: {failed[scenario.name]}", markup=False
        )
    return []


def first(error: BaseException) -> BaseException:
    """One of the errors of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def interruptible(work: Coroutine[Any, Any, T]) -> T:
    """Await it; SIGTERM ends it as Ctrl-C does, so that nothing is left behind."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await work


def turned(sides: Sequence[Side], number: int) -> list[Side]:
    """Another side first in each round, so that none has the better place."""
    start = number % len(sides)
    return [*sides[start:], *sides[:start]]


def series(scenario: Scenario, samples: Mapping[Side, Sequence[Figures]]) -> Iterator[Series]:
    """Every figure of the bridge, with the same figure of the yardsticks beside it.

    What it was for the small case, or natively, are figures of their own, and so is the ratio.
    """
    for key, unit in scenario.units.items():
        values = _values(samples, Side.BRIDGE, key)
        if not values:
            continue
        compared = key != MEMORY  # theirs keep nothing
        yield Series(
            scenario=scenario.figure_name(key),
            unit=unit,
            values=values,
            naive=_values(samples, Side.NAIVE, key) if compared else (),
            ceiling=_values(samples, Side.CEILING, key) if compared else (),
        )
        if compared:
            for side in (Side.SMALL, Side.NATIVE):
                yield from _beside(scenario, side, key, values, _values(samples, side, key))


def _beside(
    scenario: Scenario, side: Side, key: str, values: Sequence[float], others: tuple[float, ...]
) -> Iterator[Series]:
    if not others:
        return
    name = scenario.figure_name(f"{key}-{side}".lstrip("-"))
    yield Series(scenario=name, unit=scenario.units[key], values=others)
    if all(others):
        name = scenario.figure_name(f"{key}-of-{side}".lstrip("-"))
        ratios = tuple(own / other for own, other in zip(values, others, strict=True))
        yield Series(scenario=name, unit="ratio", values=ratios)


def _values(samples: Mapping[Side, Sequence[Figures]], side: Side, key: str) -> tuple[float, ...]:
    return tuple(figures[key] for figures in samples.get(side, ()) if key in figures)
