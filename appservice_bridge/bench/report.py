"""`performance.md` and its plots, from what was just measured and what was there before.

All of it takes longer than a machine is quiet. So figures are kept beside the page, with the day,
the code and the machine they are of, and a run of some scenarios replaces theirs alone.
"""

import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from appservice_bridge.bench import live
from appservice_bridge.bench.figures import Series, Summary, amount
from appservice_bridge.bench.scenarios import ALL
from appservice_bridge.bench.session import Measured
from appservice_bridge.bench.stage import SETTINGS
from appservice_bridge.bench.targets import targets

PACKAGES: Final = ("aiohttp", "asyncpg", "uvloop", "orjson", "matrix-synapse")

PLOTS: Final[tuple[tuple[str, tuple[str, ...], str], ...]] = (
    ("throughput.svg", (), "messages/s"),
    ("latency.svg", ("latency", "dead-100"), "ms"),
    ("synapse.svg", ("synapse",), "%"),
)
"""Each with its file, its scenarios (none: all) and its unit."""

_HEADER: Final = f"""\
# Performance

Written by `make bench`. Each figure is the median of the rounds, with the least and the most \
beside it; a ratio is the median of the ratios of each round. Messages are 1 KB. Everything shares \
one machine: Postgres, the worker, the receivers and what produces.

- **of naive**: an outbox as one would write it first: one row a commit, claimed a hundred at a \
time with SKIP LOCKED, json.dumps, PUT, delete (`bench/yardsticks.py`). Of a rate more is better, \
of a time less. Where rates are measured it gets fewer messages than the bridge: it takes long \
enough with them. In `live` the bridge's producers insert {live.BATCH} messages a DB transaction \
from {live.PRODUCERS} connections, and those of naive one a commit from {live.NAIVE_PRODUCERS}, so \
that the ratio is also that of these inserts.
- **of ceiling**: a bare loop that reads a range of the bridge's own table, splices, PUTs, and \
writes nothing.
- **small**, **of-small**: the same without what makes the scenario hard, and the ratio to it.
- **native**, **of-native**: Synapse with its own delivery switched on, and the ratio to it.
- **memory**: the most that the worker had (RSS).

A target that is missed is marked; `benchmarks/profiles.md` says where the time goes. A run \
of some scenarios replaces theirs: each says of which day and of which code it is.
"""
FIGURES: Final = "performance.json"

_WIDTH: Final = 760
_BAR: Final = 16
_LABEL: Final = 150
_COLOURS: Final = {"bridge": "#2463a8", "naive": "#c9822b", "ceiling": "#9aa3ad"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One scenario as it was measured last.

    Attributes:
        measured_on: a day, ISO 8601.
        code: which was measured: a commit, with a + if files were changed since; or the release.
        load: of the machine before anything was started.
    """

    scenario: str
    measured_on: str
    code: str
    load: float
    machine: str
    found: tuple[Series, ...]


_KEPT: Final = TypeAdapter(list[Kept])


def write(directory: Path, done: Measured, load: float) -> None:
    """Write the page, its plots, and the figures that a later run leaves as they are.

    `load` is the machine's load average before anything was started.
    """
    directory.mkdir(parents=True, exist_ok=True)
    kept = _kept(directory / FIGURES)
    for name in {_name(one) for one in done.found}:
        kept[name] = Kept(
            scenario=name,
            measured_on=datetime.now(UTC).date().isoformat(),
            code=code(),
            load=round(load, 1),
            machine=machine(),
            found=tuple(one for one in done.found if _name(one) == name),
        )
    known = [one.name for one in ALL if one.name in kept]
    whole = [kept[name] for name in dict.fromkeys([*known, *kept])]
    (directory / FIGURES).write_bytes(_KEPT.dump_json(whole, indent=1) + b"\n")
    found = [one for scenario in whole for one in scenario.found]
    page = [_HEADER, *_machines(whole), "", *_table(found), ""]
    page += [f"**{name} failed**: {why.splitlines()[0]}\n" for name, why in done.failed.items()]
    page += [f"![{Path(file).stem}]({file})\n" for file in _plots(directory, found)]
    page += ["## What is measured", "", *_meanings(whole), ""]
    (directory / "performance.md").write_text("\n".join(page))


def _kept(file: Path) -> dict[str, Kept]:
    if not file.exists():
        return {}
    return {one.scenario: one for one in _KEPT.validate_json(file.read_bytes())}


def _name(one: Series) -> str:
    return one.scenario.partition("/")[0]


def _plots(directory: Path, found: Sequence[Series]) -> Iterable[str]:
    for file, scenarios, unit in PLOTS:
        shown = [
            one for one in found if one.unit == unit and (not scenarios or _name(one) in scenarios)
        ]
        if shown:
            (directory / file).write_text(plot(shown, unit))
            yield file


def code() -> str:
    """What is measured: a commit; the release where that is not known."""
    clone = Path(__file__).parents[2]
    command = ("git", "describe", "--always", "--exclude=*", "--dirty=+")
    with suppress(OSError, subprocess.CalledProcessError):
        if (clone / ".git").exists():
            said = subprocess.run(command, cwd=clone, check=True, capture_output=True, text=True)
            return f"commit {said.stdout.strip()}"
    return f"release {version('appservice-bridge')}"


def machine() -> str:
    """What it is measured on."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    settings = ", ".join(f"{key} = {value}" for key, value in SETTINGS.items())
    return (
        f"{platform.platform()}, {os.cpu_count()} cores; CPython {platform.python_version()}, "
        f"{packages}; Postgres with fsync and synchronous_commit on, {settings}."
    )


def _machines(whole: Sequence[Kept]) -> list[str]:
    """Each machine once, with what was measured on it where there are several."""
    machines: dict[str, list[str]] = {one.machine: [] for one in whole}
    for one in whole:
        machines[one.machine].append(one.scenario)
    if len(machines) == 1:
        return list(machines)
    return [f"{', '.join(names)}: {machine}\n" for machine, names in machines.items()]


def _table(found: Iterable[Series]) -> list[str]:
    lines = ["| figure | unit | median | least to most | rounds | of naive | of ceiling | target |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for one in found:
        of = one.summary()
        cells = (
            of.scenario,
            of.unit,
            amount(of.median),
            f"{amount(of.min)} to {amount(of.max)}",
            str(len(one.values)),
            *("" if each is None else f"{each:.2f}" for each in (of.of_naive, of.of_ceiling)),
            target(of),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def target(of: Summary) -> str:
    """What the figure should be, and what of that it is not; nothing, where no target was set."""
    return "; ".join(
        f"**missed: {one}**" if one.is_missed_by(of) else str(one) for one in targets(of.scenario)
    )


def _meanings(whole: Sequence[Kept]) -> list[str]:
    about = {one.name: one.about for one in ALL}
    return [
        f"- **{one.scenario}**: {about.get(one.scenario, '')}. "
        f"Measured on {one.measured_on}, of {one.code}, after a load average of {one.load}."
        for one in whole
    ]


def plot(found: Sequence[Series], unit: str) -> str:
    """Bars with their spread, the yardsticks below the bridge's, as SVG."""
    rows = [
        (one.scenario if side == "bridge" else "", side, values)
        for one in found
        for side, values in (
            ("bridge", one.values),
            ("naive", one.naive),
            ("ceiling", one.ceiling),
        )
        if values
    ]
    longest = max(max(values) for _, _, values in rows)
    height = _BAR * (len(rows) + 2)
    size = f'width="{_WIDTH}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">',
        f'<rect {size} fill="white"/>',
    ]
    for place, (label, side, values) in enumerate(rows):
        parts += _bar(place * _BAR + 4, label, side, values, longest)
    legend = ", ".join(_COLOURS)
    parts.append(
        f'<text x="{_LABEL}" y="{height - 8}">{escape(unit)}; from above: {legend}; '
        "the line is from the least to the most</text>"
    )
    return "\n".join([*parts, "</svg>\n"])


def _bar(y: int, label: str, side: str, values: Sequence[float], longest: float) -> Iterable[str]:
    of = Series(scenario=label, unit="", values=tuple(values)).summary()
    scale = (_WIDTH - _LABEL - 90) / longest
    middle, least, most = (_LABEL + value * scale for value in (of.median, of.min, of.max))
    centre = y + _BAR / 2 - 2
    yield f'<text x="4" y="{y + 10}">{escape(label)}</text>'
    yield (
        f'<rect x="{_LABEL}" y="{y}" width="{middle - _LABEL:.1f}" height="{_BAR - 4}" '
        f'fill="{_COLOURS[side]}"/>'
    )
    yield (f'<line x1="{least:.1f}" x2="{most:.1f}" y1="{centre}" y2="{centre}" stroke="black"/>')
    yield f'<text x="{most + 6:.1f}" y="{y + 10}">{amount(of.median)}</text>'
