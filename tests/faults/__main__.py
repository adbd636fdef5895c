"""`python -m tests.faults [--short] [--scenario NAME] [--seed N] [--evidence FILE]`.

Ends 1 when anything was lost, doubled, reordered or altered.
"""

import argparse
import asyncio
import secrets
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tests.faults.dying import BREAKS
from tests.faults.playing import Row, Scenario, play
from tests.faults.report import evidence, killed, table
from tests.faults.scenarios import SCENARIOS
from tests.faults.with_synapse import NAME, SAYS, SECONDS, play_with_synapse

SHORT_BATCH = 100
SHORT_WORKERS = 3
AT_ONCE = 4  # in the short form, which mostly waits: for starts, and for leases to run out


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--short", action="store_true", help="under three minutes")
    parser.add_argument("--scenario", action="append", choices=[*SCENARIOS, NAME])
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--seconds", type=float, help="of each scenario, instead of its own")
    parser.add_argument("--evidence", type=Path, metavar="FILE")
    parser.add_argument("--break", dest="broken", choices=sorted(BREAKS))
    parser.add_argument("--keep", action="store_true", help="leave the directories behind")
    return parser.parse_args()


def everything(*, short: bool) -> list[Scenario]:
    """All; in the short form those that have one."""
    return [one for one in SCENARIOS.values() if one.short_seconds or not short]


def chosen(names: Sequence[str] | None, *, short: bool) -> list[Scenario]:
    """Those that were named, else everything."""
    if names is None:
        return everything(short=short)
    return [SCENARIOS[name] for name in names if name != NAME]


def shortened(scenario: Scenario) -> Scenario:
    """The same with less in it; most of the time goes into starts of workers."""
    few = min(scenario.layout.workers, SHORT_WORKERS)
    return replace(scenario, layout=replace(scenario.layout, batch=SHORT_BATCH, workers=few))


async def run(
    scenarios: Sequence[Scenario],
    *,
    short: bool,
    seed: int,
    seconds: float | None = None,
    broken: str | None = None,
    keep: bool = False,
    ended: Callable[[Row], None] = lambda _: None,
) -> list[Row]:
    """All of them; in the short form a few at a time. `ended` hears of each at once."""
    places = asyncio.Semaphore(AT_ONCE if short else 1)

    async def one(scenario: Scenario) -> Row:
        async with places:
            own = scenario.short_seconds if short else scenario.seconds
            scenario = shortened(scenario) if short else scenario
            row = await play(scenario, seconds=seconds or own, seed=seed, broken=broken, keep=keep)
            say(row)
            ended(row)
            return row

    return list(await asyncio.gather(*map(one, scenarios)))


def say(row: Row) -> None:
    """Progress, as each scenario ends."""
    verdict = row.verdict
    result = "clean" if row.clean else "NOT CLEAN"
    if row.not_run is not None:
        result = f"not run: {row.not_run}"
    print(
        f"{row.scenario}: {result}; {verdict.facts:,} facts, {verdict.delivered:,} delivered,"
        f" {killed(row.kills)}, {row.seconds:.0f} s",
        *([row.failed] if row.failed else []),
        *verdict.examples,
        sep="\n  ",
        file=sys.stderr,
        flush=True,
    )


def _command(given: argparse.Namespace) -> str:
    if given.seconds is None and given.scenario is None:
        return "make faults"
    named = "".join(f" --scenario {one}" for one in given.scenario or ())
    seconds = "" if given.seconds is None else f" --seconds {given.seconds:g}"
    return f"python -m tests.faults{named}{seconds}"


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that all is cleaned up then, too
    given = arguments()
    print(f"seed {given.seed}", file=sys.stderr, flush=True)
    rows: list[Row] = []

    def write_down(row: Row) -> None:
        """What was shown so far is evidence, should the rest be cut off."""
        rows.append(row)
        if given.evidence is not None:
            says = {name: one.says for name, one in SCENARIOS.items()} | {NAME: SAYS}
            given.evidence.write_text(evidence(rows, _command(given), says))

    asyncio.run(
        run(
            chosen(given.scenario, short=given.short),
            short=given.short,
            seed=given.seed,
            seconds=given.seconds,
            broken=given.broken,
            keep=given.keep,
            ended=write_down,
        )
    )
    if NAME in (given.scenario or [NAME]) and not given.short:
        row = play_with_synapse(seconds=given.seconds or SECONDS, seed=given.seed)
        say(row)
        write_down(row)
    print(table(rows))
    return 0 if all(row.clean for row in rows) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
