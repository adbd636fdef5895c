"""A run from the outside: what it refuses, and that what it starts is gone afterwards."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from rich.console import Console
from typer.testing import CliRunner

from appservice_bridge.bench import report
from appservice_bridge.bench.crowd import NothingCameError
from appservice_bridge.bench.drain import Drain
from appservice_bridge.bench.figures import Series, Side
from appservice_bridge.bench.report import code, write
from appservice_bridge.bench.scenario import RATE, Figures, Scenario
from appservice_bridge.bench.scenarios import ALL
from appservice_bridge.bench.session import (
    Measured,
    NoSpaceError,
    Options,
    measured,
    require_space,
)
from appservice_bridge.bench.stage import SETTINGS, Stage
from appservice_bridge.cli import bench
from appservice_bridge.cli.main import app

FEW = Drain(appservices=1, full=2_500, quick=2_500)
SMALL = Scenario(
    name="small",
    about="",
    units=RATE,
    sides={Side.BRIDGE: FEW.bridge, Side.NAIVE: FEW.naive, Side.CEILING: FEW.ceiling},
)


async def failing(_stage: Stage) -> Figures:
    raise NothingCameError(7)


DRAINED = Series(scenario="drain-1", unit="messages/s", values=(40_820.0,))
FAILS = Scenario(name="fails", about="", units=RATE, sides={Side.BRIDGE: failing})


def postgres_children() -> set[int]:
    return {one.pid for one in psutil.Process().children() if "postgres" in one.name()}


def left_in(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def test_the_list_names_every_scenario() -> None:
    ended = CliRunner().invoke(app, ["bench", "--list"])
    assert ended.exit_code == 0
    named = [line.split()[0] for line in ended.stdout.splitlines()[1:]]
    assert named == [scenario.name for scenario in ALL]
    listed = json.loads(CliRunner().invoke(app, ["bench", "--list", "--json"]).stdout)
    assert listed == [{"scenario": one.name, "about": one.about} for one in ALL]


def test_a_scenario_that_nobody_knows_is_bad_usage() -> None:
    ended = CliRunner().invoke(app, ["bench", "--scenario", "drain-7"])
    assert ended.exit_code == 2
    assert "drain-8" in ended.stderr


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run takes no time, and comes to one figure."""
    monkeypatch.setattr(bench, "_measured", lambda _: Measured(found=[DRAINED], failed={}))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("options", "mend"),
    [
        (["--rounds", "4"], "needs 5 rounds: leave out --rounds"),
        (["--quick"], "leave out --quick"),
        (["--quick", "--rounds", "5"], "leave out --quick"),
    ],
)
def test_what_is_published_is_measured_in_full_and_five_times(
    tmp_path: Path, options: list[str], mend: str
) -> None:
    ended = CliRunner().invoke(app, ["bench", "--plots", str(tmp_path), *options])
    assert ended.exit_code == 2
    assert mend in " ".join(ended.stderr.replace("│", " ").split())
    assert left_in(tmp_path) == []
    assert CliRunner().invoke(app, ["bench", "--plots", str(tmp_path)]).exit_code == 0
    assert "| drain-1 |" in (tmp_path / "performance.md").read_text()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(("cores", "is_busy"), [(2, True), (16, False)])
def test_a_load_is_worth_a_word_where_it_is_much_for_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, is_busy: bool
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 1.5, 1.5))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    ended = CliRunner().invoke(app, ["bench", "--quick"])
    assert ended.exit_code == 0
    assert ("load average 1.5" in ended.stderr) is is_busy
    assert "40,820" in ended.stdout


def test_a_full_disk_is_refused_before_anything_starts(tmp_path: Path) -> None:
    huge = replace(SMALL, name="huge", free_bytes=2**62)
    with pytest.raises(NoSpaceError, match="huge needs 4294967296 GiB"):
        require_space([SMALL, huge], tmp_path)


async def test_a_small_drain_is_measured_on_every_side_whatever_else_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setitem(SETTINGS, "fsync", "off")  # here it is the arithmetic that counts
    before = postgres_children()
    options = Options(scenarios=[FAILS, SMALL], rounds=1, quick=True)
    done = await measured(options, Console(file=StringIO()))
    found = done.found
    assert done.failed == {"fails": "none of 7 messages that the homeserver accepted came"}
    assert [(one.scenario, one.unit) for one in found] == [
        ("small", "messages/s"),
        ("small/memory", "MB"),
    ]
    rates, memory = [one.summary() for one in found]
    assert rates.median > 0
    assert rates.of_naive is not None
    assert rates.of_ceiling is not None
    assert 10 < memory.median < 1000
    assert left_in(tmp_path) == []
    assert postgres_children() <= before  # the tests' own server may run
    write(tmp_path / "docs", done, load=0.1)
    page = (tmp_path / "docs" / "performance.md").read_text()
    assert "| small | messages/s |" in page
    assert "**fails failed**" in page
    assert (tmp_path / "docs" / "throughput.svg").read_text().startswith("<svg")
    assert json.dumps([one.summary().as_json() for one in found])


def published(directory: Path, *found: Series) -> list[str]:
    """The rows of the page, after a run that came to this."""
    write(directory, Measured(found=found, failed={}), load=0.1)
    page = (directory / "performance.md").read_text()
    return [
        line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if "| ms |" in line
    ]


def test_a_run_of_some_scenarios_replaces_theirs_and_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def took(name: str, *values: float) -> Series:
        return Series(scenario=name, unit="ms", values=values, naive=values)

    assert published(tmp_path, took("latency", 1.0, 2.0), took("latency/p99", 3.0)) == [
        "latency",
        "latency/p99",
    ]
    monkeypatch.setattr(report, "code", lambda: "commit later")
    assert published(tmp_path, took("dead-100", 4.0)) == ["latency", "latency/p99", "dead-100"]
    assert (tmp_path / "performance.md").read_text().count(f"of {code()}") == 1
    monkeypatch.setattr(report, "code", lambda: "commit latest")
    assert published(tmp_path, took("latency", 5.0)) == ["latency", "dead-100"]
    page = (tmp_path / "performance.md").read_text()
    assert "| latency | ms | 5 | 5 to 5 | 1 | 1.00 |" in page
    assert [page.count(f"of commit {one}") for one in ("later", "latest")] == [1, 1]
    assert (tmp_path / "latency.svg").read_text().count("dead-100") == 1


def test_figures_outlive_a_git_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert code().startswith("release ")


async def test_what_was_measured_before_an_interruption_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setitem(SETTINGS, "fsync", "off")
    reached = asyncio.Event()

    async def ready(_stage: Stage) -> Figures:
        return {"": 40_820.0}

    async def never(_stage: Stage) -> Figures:
        reached.set()
        return await asyncio.Future[Figures]()

    soon = replace(FAILS, name="soon", sides={Side.BRIDGE: ready})
    late = replace(FAILS, name="late", sides={Side.BRIDGE: never})
    options, said = Options(scenarios=[soon, late, SMALL], rounds=1, quick=True), StringIO()
    running = asyncio.create_task(measured(options, Console(file=said)))
    await reached.wait()
    running.cancel()
    done = await running
    assert [(one.scenario, one.values) for one in done.found] == [("soon", (40_820.0,))]
    assert "soon, bridge: 40,820 messages/s" in said.getvalue()
    assert done.failed == {"late": "interrupted", "small": "interrupted"}
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 1)])
def test_who_is_interrupted_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "appservice_bridge", "bench", "--quick", "--scenario", "drain-1"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        # A shell's background ignores it, and so would everything below.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        bench = psutil.Process(process.pid)
        while len(started := bench.children()) < 2:  # Postgres and the receivers
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code, said.decode()
    assert b"Traceback" not in said
    assert left_in(tmp_path) == []
    assert psutil.wait_procs(started, timeout=0)[1] == []
