"""`top`: every lane, again and again."""

import asyncio
import sys
import termios
import tty
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Final

import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from appservice_bridge.cli.check import ConfigOption
from appservice_bridge.cli.context import finished, loaded, transports, with_database
from appservice_bridge.cli.shown import print_table, table
from appservice_bridge.domain.transport import Transport
from appservice_bridge.domain.waiting import set_within
from appservice_bridge.storage import overview
from appservice_bridge.storage.database import Database, DatabaseUnavailableError
from appservice_bridge.storage.overview import LaneView

EVERY_SECONDS: Final = 1.0
_HEADINGS: Final = (
    "appservice",
    "state",
    "waiting",
    "devices",
    "oldest",
    "delivered",
    "just now",
    "dead",
    "last answer",
)
_NUMBERS: Final = ("waiting", "devices", "oldest", "delivered", "just now", "dead")


def top(
    config: ConfigOption,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
) -> None:
    """Watch every lane, each second anew; q or Ctrl-C ends it. Works with no worker running."""
    of = loaded(config)
    known = transports(of)

    async def work(database: Database) -> None:
        if once:
            print_table(_table(await _look(database, known), {}))
        else:
            await _watch(database, known)

    finished(with_database(of, work))


async def _watch(database: Database, known: Mapping[str, Transport]) -> None:
    """Show what is there until somebody ends it; a database that is away is waited for."""
    ended = asyncio.Event()
    before: dict[str, int] = {}
    with _keys(ended), Live(Table(), auto_refresh=False, screen=True) as live:
        while not ended.is_set():
            try:
                seen = await _look(database, known)
            except DatabaseUnavailableError as error:
                live.update(escape(f"{error}; it is looked for again"), refresh=True)
            else:
                live.update(_table(seen, before), refresh=True)
                before = {lane.appservice_id: lane.delivered for lane in seen}
            await set_within(ended, EVERY_SECONDS)


async def _look(database: Database, known: Mapping[str, Transport]) -> list[LaneView]:
    async with database.transaction() as conn:
        return await overview.lanes(conn, known)


@contextmanager
def _keys(ended: asyncio.Event) -> Iterator[None]:
    """Set the event at a q, where somebody sits at a terminal; it is left as it was."""
    if not sys.stdin.isatty():
        yield
        return
    stdin, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    was = termios.tcgetattr(stdin)

    def pressed() -> None:
        if sys.stdin.read(1) in ("q", "Q", ""):
            ended.set()

    tty.setcbreak(stdin)
    loop.add_reader(stdin, pressed)
    try:
        yield
    finally:
        loop.remove_reader(stdin)
        termios.tcsetattr(stdin, termios.TCSADRAIN, was)


def _table(lanes: list[LaneView], before: dict[str, int]) -> Table:
    """With what was delivered since the last look, where there was one."""
    rows = [_row(lane, before.get(lane.appservice_id)) for lane in lanes]
    return table(_HEADINGS, rows, numbers=_NUMBERS)


def _row(lane: LaneView, before: int | None) -> tuple[str, ...]:
    return (
        lane.appservice_id,
        lane.state,
        str(lane.waiting),
        str(lane.device_updates),
        "-" if lane.oldest_seconds is None else f"{lane.oldest_seconds:.0f} s",
        str(lane.delivered),
        "-" if before is None else f"+{lane.delivered - before}",
        str(lane.dead_letters),
        lane.last_outcome or "nothing sent yet",
    )
