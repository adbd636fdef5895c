"""`audit`: what went in compared with what came out, and with what the homeserver holds."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Final

import typer

from appservice_bridge.cli.check import ConfigOption
from appservice_bridge.cli.context import finished, loaded, owners, with_connection
from appservice_bridge.cli.progress import line
from appservice_bridge.cli.replay import duration
from appservice_bridge.cli.shown import print_table, table
from appservice_bridge.cli.synapse_side import reads_synapse
from appservice_bridge.config.loading import Loaded
from appservice_bridge.domain.ledger_outcomes import INTO_OUTBOX, OUT_OF_OUTBOX, LedgerOutcome
from appservice_bridge.domain.owners import Owners
from appservice_bridge.sources.missing_facts import MissingEvents, missing_events, untaken
from appservice_bridge.storage import audit as books
from appservice_bridge.storage import migrations, synapse
from appservice_bridge.storage.audit import Balance
from appservice_bridge.storage.database import (
    Connection,
    SourceUnreadableError,
    reading_synapse,
)

JSON_VERSION: Final = 1
LONGEST_LOOK_BACK_SECONDS: Final = 29 * 86_400  # which events came is known for 30 days
LOOK_AGAIN_SECONDS: Final = 2.0
_WORDS: Final = [each for each in LedgerOutcome if each in INTO_OUTBOX | OUT_OF_OUTBOX]
_NUMBERS: Final = (*_WORDS, "waiting", "difference")


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """What an audit found.

    Attributes:
        lacking: positions of outboxes above the last acknowledged one without a row.
        messages: rows of the homeserver's inbox that nobody took in time.
        homeserver: whether what it holds was to be compared.
        unknown: what is not compared, each with the reason.
        failed: what could not be compared, though it should have been, each with the reason.
    """

    balances: list[Balance]
    lacking: int
    messages: int = 0
    events: MissingEvents = field(default_factory=MissingEvents)
    homeserver: bool = True
    unknown: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether both sides are the same, as far as they were compared."""
        even = all(each.difference == 0 for each in self.balances)
        return even and not (self.lacking or self.messages or self.events.missing)


def audit(
    config: ConfigOption,
    since: Annotated[
        float,
        typer.Option(parser=duration, metavar="DURATION", help="How far to look back for events."),
    ] = "24h",  # type: ignore[assignment]
    wait: Annotated[
        float,
        typer.Option(
            parser=duration,
            metavar="DURATION",
            help="How long a message in the homeserver's inbox may be there before it is taken.",
        ),
    ] = "2m",  # type: ignore[assignment]
    as_json: Annotated[
        bool, typer.Option("--json", help="One object with version, balances and what is missing.")
    ] = False,
) -> None:
    """Compare what went in with what came out; ends 1 on a difference, or if it could not.

    Works beside running workers and with none. It waits only for messages that are not taken yet.
    """
    of = loaded(config)

    async def work(conn: Connection) -> Audited:
        look_back = min(since, LONGEST_LOOK_BACK_SECONDS)
        with line("comparing") as tell:
            return await _audit(conn, of, tell, since=look_back, wait=wait)

    found = finished(with_connection(of, work))
    if as_json:
        print(_as_json(found))
    else:
        _show(found)
    raise typer.Exit(0 if found.agrees and not found.failed else 1)


async def _audit(
    conn: Connection, of: Loaded, tell: Callable[[str], None], *, since: float, wait: float
) -> Audited:
    await migrations.require_current(conn)
    async with books.snapshot(conn):
        balances, lacking = await books.balances(conn, tell)
    if not reads_synapse(of):
        unknown = ["what the homeserver holds: its tables are not read (homeserver.capture: none)"]
        return Audited(balances=balances, lacking=lacking, homeserver=False, unknown=unknown)
    known = owners(of)
    unknown, failed = [], []
    messages, events = 0, MissingEvents()
    try:
        with reading_synapse():
            await synapse.require_synapse(conn)
            messages = await _messages(conn, known, unknown, tell, wait=wait)
            events = await missing_events(conn, known, since_seconds=since, tell=tell)
    except SourceUnreadableError as error:
        mend = "`appservice-bridge doctor` says what to mend"
        failed.append(f"what the homeserver holds: {error.reason}; {mend}")
    return Audited(
        balances=balances,
        lacking=lacking,
        messages=messages,
        events=events,
        unknown=unknown + events.unknown,
        failed=failed + events.failed,
    )


async def _messages(
    conn: Connection,
    known: Owners,
    unknown: list[str],
    tell: Callable[[str], None],
    *,
    wait: float,
) -> int:
    """How many messages nobody has taken, though they were there for as long as may be."""
    look = await untaken(conn, known, tell)
    if look.floor is None:
        unknown.append("to-device messages: no worker has compared the inbox yet")
    elif look.floor > 0:
        unknown.append(
            f"to-device messages up to stream position {look.floor}: the reconciler compared them,"
            " and what was taken of them is not remembered"
        )
    unknown += [f"to-device messages of {id_}: never attached" for id_ in look.unattached]
    keys, until = look.keys, time.monotonic() + wait
    while keys and time.monotonic() < until:
        tell(f"{len(keys)} messages are not taken yet; looking again")
        await asyncio.sleep(min(LOOK_AGAIN_SECONDS, wait))
        keys &= (await untaken(conn, known, tell)).keys
    return len(keys)


def _show(found: Audited) -> None:
    if found.balances:
        headings = ("appservice", "kind", *_NUMBERS)
        print_table(table(headings, map(_row, found.balances), numbers=_NUMBERS))
    if found.lacking:
        print(f"{found.lacking} positions of outboxes hold no item")
    if found.messages:
        print(f"{found.messages} to-device messages lie in the homeserver's inbox and nobody took")
    for id_, count in sorted(found.events.missing.items()):
        print(f"{count} room events for {id_} never came")
    if found.events.withheld:
        print(f"{found.events.withheld} redactions never came: the homeserver may keep them back")
    for one in found.unknown + found.failed:
        print(f"not compared: {one}")
    print(_verdict(found))


def _verdict(found: Audited) -> str:
    """In one line; what was not compared never reads as if it agreed."""
    if not found.agrees:
        return "both sides differ"
    here = "what went in agrees with what came out"
    if found.failed:
        return f"{here}; not all of the homeserver's side could be compared"
    return "both sides agree" if found.homeserver else f"{here}; the homeserver's side is not read"


def _row(of: Balance) -> tuple[str, ...]:
    counts = [str(of.counts.get(word, 0)) for word in _WORDS]
    return (of.appservice_id, of.kind, *counts, str(of.waiting), str(of.difference))


def _as_json(found: Audited) -> str:
    return json.dumps(
        {
            "version": JSON_VERSION,
            "agrees": found.agrees,
            "balances": [
                {"appservice_id": each.appservice_id, "kind": each.kind}
                | {word: each.counts.get(word, 0) for word in _WORDS}
                | {"waiting": each.waiting, "difference": each.difference}
                for each in found.balances
            ],
            "lacking_positions": found.lacking,
            "missing": {"to_device": found.messages, "event": dict(found.events.missing)},
            "withheld_redactions": found.events.withheld,
            "not_compared": found.unknown + found.failed,
            "could_not_compare": found.failed,
        }
    )
