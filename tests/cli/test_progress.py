"""Long work says how far it is to whoever sits at a terminal, and to nobody else."""

import asyncio
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from appservice_bridge.cli.context import author, owners
from appservice_bridge.cli.progress import line
from appservice_bridge.delivery import operating
from appservice_bridge.routing.announcing import announce
from appservice_bridge.storage.database import Database
from tests.support.bridge import Files, registration, write_files
from tests.support.command import command
from tests.support.dead_letters import set_aside
from tests.support.facts import Connection

DISCARD = ("discard", "--appservice", "bot", "--yes", "--config")


@pytest.fixture
async def files(pg: Connection, db: Database, database: str, tmp_path: Path) -> Files:
    """Three dead letters are there."""
    files = write_files(tmp_path, database, [registration("bot", "http://127.0.0.1:9")])
    await announce(db, owners(files.load()), epoch="test")
    for n in range(3):
        await set_aside(pg, n)
    return files


def at_a_terminal(*arguments: str) -> tuple[str, str]:
    """What the command says on stdout, and what it draws on a terminal that is its stderr."""
    ours, theirs = pty.openpty()
    try:
        run = subprocess.run(
            [sys.executable, "-m", "appservice_bridge", *arguments],
            stdout=subprocess.PIPE,
            stderr=theirs,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
            check=True,
        )
        os.set_blocking(ours, False)
        return run.stdout.decode(), os.read(ours, 100_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)


async def test_a_bar_is_drawn_on_a_terminal_and_leaves_the_answer_alone(files: Files) -> None:
    out, drawn = await asyncio.to_thread(at_a_terminal, *DISCARD, str(files.config))
    assert out == "3 dead letters discarded\n"
    assert "discard" in drawn
    assert "3/3" in drawn


async def test_without_a_terminal_nothing_is_drawn(files: Files) -> None:
    assert await command(*DISCARD, str(files.config)) == (0, "3 dead letters discarded\n", "")


async def test_what_is_told_rises_to_all_of_it(
    files: Files, db: Database, pg: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operating, "BATCH", 2)
    told: list[tuple[int, int | None]] = []
    ids = await operating.all_of(db, "bot")
    tell: Callable[[int, int | None], None] = lambda done, of: told.append((done, of))  # noqa: E731
    await operating.discard(db, "bot", ids, by=author(), tell=tell)
    assert told == [(2, 3), (3, 3)]


def test_a_line_without_a_terminal_is_not_said_of_what_is_quick(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with line("comparing") as tell:
        tell("1 of 2")
    assert capfd.readouterr() == ("", "")
