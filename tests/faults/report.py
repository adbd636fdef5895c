"""The table, and the evidence around it."""

import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from appservice_bridge.bench.report import code
from tests.faults.judging import Verdict
from tests.faults.playing import Row

HEAD: Final = (
    "scenario",
    "killed or stopped",
    "facts in",
    "delivered",
    "lost",
    "doubled",
    "reordered",
    "altered",
    "longest stall",
)


def table(rows: Sequence[Row]) -> str:
    """Markdown, with the totals in the last line."""
    lines = [HEAD, ("---",) * len(HEAD), *(_cells(row) for row in rows), _totals(rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    if row.not_run is not None:
        return (row.scenario, f"not run: {row.not_run}", *([""] * (len(HEAD) - 2)))
    name = row.scenario if row.failed is None else f"{row.scenario}: failed"
    return (name, killed(row.kills), *_numbers(row.verdict))


def _numbers(verdict: Verdict) -> tuple[str, ...]:
    counts = (verdict.facts, verdict.delivered)
    faults = (verdict.lost, verdict.doubled, verdict.reordered, verdict.altered)
    return (*(f"{one:,}" for one in counts + faults), f"{verdict.stall_seconds:.1f} s")


def _totals(rows: Sequence[Row]) -> tuple[str, ...]:
    kills = sum((Counter(row.kills) for row in rows), Counter[tuple[str, str]]())
    total = Verdict(
        **{
            name: sum(getattr(row.verdict, name) for row in rows)
            for name in ("facts", "delivered", "lost", "doubled", "reordered", "altered")
        },
        stall_seconds=max((row.verdict.stall_seconds for row in rows), default=0.0),
    )
    return ("**all**", killed(kills), *_numbers(total))


def sigkills(rows: Sequence[Row]) -> int:
    return sum(count for row in rows for (_, name), count in row.kills.items() if name == "SIGKILL")


def killed(kills: Mapping[tuple[str, str], int]) -> str:
    """How many of which; where exactly at its commits a worker died is left to the details."""
    counted: Counter[tuple[str, str]] = Counter()
    for (process, name), count in kills.items():
        if name != "SIGCONT":
            counted[process.partition(",")[0], name] += count
    return ", ".join(f"{n} {what} {name}" for (what, name), n in sorted(counted.items())) or "none"


def evidence(rows: Sequence[Row], command: str, says: Mapping[str, str]) -> str:
    """The file docs/evidence.md."""
    return "\n".join(
        [
            "# Evidence: what survives which fault",
            "",
            _opening(rows, command),
            "",
            table(rows),
            "",
            REFUSALS,
            "",
            HOW,
            "",
            "| scenario | what happens |",
            "|---|---|",
            *(f"| {row.scenario} | {says[row.scenario]} |" for row in rows),
            "",
            KINDS,
            "",
            "| scenario | commit | workers died |",
            "|---|---|---|",
            *(f"| {row.scenario} | `{at}` | {n} |" for row in rows for at, n in _points(row)),
            "",
        ]
    )


def _points(row: Row) -> Iterator[tuple[str, int]]:
    """At which commits how many workers died."""
    for (process, _), count in sorted(row.kills.items()):
        if ", at " in process:
            yield process.partition(", at ")[2], count


def _opening(rows: Sequence[Row], command: str) -> str:
    total = sum(row.verdict.facts for row in rows)
    return (
        f"Written by `{command}`, of {code()}."
        f" {sigkills(rows):,} processes killed with SIGKILL, {total:,} facts,"
        f" {_minutes(rows):.0f} minutes; {os.cpu_count()} cores, {platform.machine()},"
        f" Python {platform.python_version()}, seed {rows[0].seed if rows else 0}."
    )


def _minutes(rows: Sequence[Row]) -> float:
    return sum(row.seconds for row in rows) / 60


KINDS: Final = """Commits at which workers died, by the function that opens the DB transaction, or
has a single statement that is one: right before it, or while Postgres was at the statement; or
right after it."""

REFUSALS: Final = """What `refusals` did not deliver is the poison that it buried; its stall is the
quarter of an hour for which nothing is split that a killed worker may have delivered."""

HOW: Final = """## How it is counted

The judge (`tests/faults/judging.py`) asks nothing of the bridge: neither its tables nor its
logs. It compares two kinds of files. Senders write down what they were answered 200 for;
appservices, processes of their own, write down each request (id, SHA-256 of the body, and
of each fact in it its stream, its number and a checksum) before they answer.

- **lost**: answered 200, and in no transaction that its appservice answered 200.
- **doubled**: under two transaction ids.
- **reordered**: after a later fact of its stream, or in a transaction that came before an older
  one was taken.
- **altered**: a transaction id with two digests, a fact that does not say what was sent, or one
  that nobody was answered for.
- **longest stall**: the longest time in which facts waited for an appservice and none came, faults
  included: a worker that is killed keeps its lanes until its lease of 10 s is over.

A worker, an appservice or Postgres is killed by its process id while senders go on. Each stream
of facts has one sender, who sends the next only when the last was answered, and the same again
until then. The suite fails on a bridge that breaks a promise on purpose: `--break ack-first`,
`new-id`, `new-bytes` and `late` (`tests/faults/test_short.py`)."""
