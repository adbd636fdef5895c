"""How lists are shown: to people as a table, to programs as one object with a version."""

import dataclasses
import json
from collections.abc import Container, Iterable, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_WIDE: Final = 10_000


def table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Container[str] = ()
) -> Table:
    """What stands in the cells is shown as it is; numbers to the right."""
    made = Table(box=None, pad_edge=False)
    for heading in headings:
        made.add_column(heading, justify="right" if heading in numbers else "left")
    for row in rows:
        made.add_row(*map(escape, row))
    return made


def print_table(made: Table) -> None:
    """A row per line; where it goes into no terminal, however long the line gets."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDE)
    console.print(made)


def moment(at: datetime) -> str:
    """A moment, UTC, to the second."""
    return f"{at:%Y-%m-%d %H:%M:%S}"


def as_json(version: int, **members: Any) -> str:
    """One object on one line; dataclasses become objects, moments ISO 8601, infinity null."""
    return json.dumps(_plain({"version": version, **members}), allow_nan=False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    match value:
        case dict():
            return {key: _plain(each) for key, each in value.items()}
        case list() | tuple():
            return [_plain(each) for each in value]
        case datetime():
            return value.isoformat()
        case UUID():
            return str(value)
        case float() if value == float("inf"):
            return None
        case _:
            return value
