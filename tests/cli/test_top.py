"""`top`, in a terminal of its own and without one."""

import asyncio
import os
import pty
import sys
from pathlib import Path

import pytest

from appservice_bridge.cli.context import owners
from appservice_bridge.routing.announcing import announce
from appservice_bridge.storage.database import Database
from tests.support.bridge import Files, registration, write_files
from tests.support.command import command


@pytest.fixture
async def files(tmp_path: Path, database: str, db: Database) -> Files:
    files = write_files(tmp_path, database, [registration("bot", "http://127.0.0.1:9")])
    await announce(db, owners(files.load()), epoch="test")
    return files


async def test_once_shows_every_lane_and_ends(files: Files) -> None:
    code, out, err = await command("top", "--once", "--config", str(files.config))
    assert (code, err) == (0, "")
    assert "bot" in out
    assert "nothing sent" in out


async def test_it_goes_on_until_a_q_and_leaves_the_terminal_as_it_was(files: Files) -> None:
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "appservice_bridge", "top", "--config", str(files.config)),
        stdin=theirs,
        stdout=theirs,
        env=os.environ | {"TERM": "xterm"},
    )
    os.set_blocking(ours, False)
    shown = b""
    async with asyncio.timeout(120):
        while shown.count(b"bot") < 2:  # it looked again
            shown += read(ours)
            await asyncio.sleep(0.05)
        assert process.returncode is None
        os.write(ours, b"q")
        while process.returncode is None:
            shown += read(ours)
            await asyncio.sleep(0.05)
    shown += read(ours)
    assert process.returncode == 0
    assert b"\x1b[?1049l" in shown  # back from the other screen
    os.close(ours)
    os.close(theirs)


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except BlockingIOError:
        return b""
