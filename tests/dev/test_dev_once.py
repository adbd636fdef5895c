import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dev_command import PATIENCE_SECONDS, DevCommand, python_for, running_in

STORY = (
    "Postgres, embedded",
    "Synapse, a real homeserver",
    "appservice-bridge install",
    "the bot was invited in transaction",
    "the bot got a room key in transaction",
    "the bot decrypted a message from transaction",
    "the echo is back and decrypts to",
    "An encrypted message went round",
)


@pytest.fixture
def somebody_else(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A directory of an ordinary user and how to be that user; of ourselves if we are one."""
    python = python_for("nobody") if os.geteuid() == 0 else None
    if python is None:
        yield tmp_path / "other", {}
        return
    directory = Path(tempfile.mkdtemp())
    shutil.chown(directory, "nobody")
    yield directory, {"user": "nobody", "python": python}
    shutil.rmtree(directory)


def test_a_message_goes_round_for_two_users_at_once_and_nothing_is_left(
    tmp_path: Path, somebody_else: tuple[Path, dict[str, str]]
) -> None:
    directory, identity = somebody_else
    runs = [
        DevCommand.start(tmp_path / "one", "--once"),
        DevCommand.start(directory, "--once", output=tmp_path / "other.out", **identity),
    ]
    for run in runs:
        assert run.process.wait(PATIENCE_SECONDS) == 0, run.said()
        story = run.said()
        places = [story.find(step) for step in STORY]
        assert places == sorted(places), story
        assert -1 not in places, story
        assert not (run.directory / "env.json").exists()
        assert running_in(run.directory) == []


def test_once_without_the_bot_is_bad_usage(tmp_path: Path) -> None:
    assert (
        DevCommand.start(tmp_path / "dev", "--once", "--no-bot").process.wait(PATIENCE_SECONDS) == 2
    )
