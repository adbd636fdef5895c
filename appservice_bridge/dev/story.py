"""Tells the person at the terminal what happens, step by step, and how long each step took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


class Story:
    """Steps with their times; notes in between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long the story has gone on."""
        return time.monotonic() - self._began

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """One step: shown as under way, then with its time; not at all if it fails."""
        began = time.monotonic()
        with self._console.status(f"{text} …"):
            yield
        took = time.monotonic() - began
        self._print(f"[green]{took:7.2f} s[/green]  ", text)

    def note(self, text: str) -> None:
        """Something that happened during a step."""
        self._print("[dim]        ·[/dim]  ", text)

    def fail(self, text: str) -> None:
        """What went wrong."""
        self._print("[red]   failed[/red]  ", text)

    def say(self, text: str = "") -> None:
        """A line of its own."""
        self._print("", text)

    def _print(self, mark: str, text: str) -> None:
        self._console.print(mark, end="", highlight=False)
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
