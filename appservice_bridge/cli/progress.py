"""Long work, watched at a terminal: a bar, or a line that changes, on stderr; gone at the end."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from appservice_bridge.domain.progress import Tell, nobody

LINE_EVERY_SECONDS: Final = 2.0


@contextmanager
def bar(what: str) -> Iterator[Tell]:
    """Draw how far it is; where nobody sits at a terminal, nothing."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield nobody
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as drawn:
        task = drawn.add_task(what, total=None)

        def tell(done: int, of: int | None) -> None:
            drawn.update(task, completed=done, total=of)

        yield tell


@contextmanager
def line(what: str) -> Iterator[Callable[[str], None]]:
    """Say in words how far it is; without a terminal a line every few seconds at most."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(what) as status:
            yield status.update
        return
    told_at = time.monotonic()

    def tell(how_far: str) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= LINE_EVERY_SECONDS:
            told_at = time.monotonic()
            typer.echo(how_far, err=True)

    yield tell
