"""The watch of files: what changed is told once, and only when it is whole."""

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from appservice_bridge.config.registrations import read_registration
from appservice_bridge.config.watching import FileWatch

PATTERNS = ("*.reg",)


@pytest.fixture
def watch(tmp_path: Path) -> FileWatch:
    (tmp_path / "bridge.yaml").write_text("a")
    (tmp_path / "one.reg").write_text("1")
    watch = FileWatch(tmp_path / "bridge.yaml")
    assert [watch.changed(PATTERNS) for _ in range(3)] == [False, True, False]
    return watch


@pytest.mark.parametrize("name", ["bridge.yaml", "one.reg", "new.reg"])
def test_a_change_is_told_once_after_two_equal_looks(
    watch: FileWatch, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("2")
    assert [watch.changed(PATTERNS) for _ in range(4)] == [False, True, False, False]


def test_a_file_that_is_still_written_is_not_told(watch: FileWatch, tmp_path: Path) -> None:
    for n in range(2, 9):
        (tmp_path / "one.reg").write_text(str(n))
        assert not watch.changed(PATTERNS)
    assert watch.changed(PATTERNS)


def test_a_file_that_an_editor_moves_away_for_a_moment_is_not_told(
    watch: FileWatch, tmp_path: Path
) -> None:
    (tmp_path / "one.reg").rename(tmp_path / "one.old")
    assert not watch.changed(PATTERNS)
    (tmp_path / "one.old").rename(tmp_path / "one.reg")
    assert [watch.changed(PATTERNS) for _ in range(3)] == [False, False, False]


def test_the_same_content_at_another_time_is_no_change(watch: FileWatch, tmp_path: Path) -> None:
    (tmp_path / "two").write_text("1")
    (tmp_path / "two").replace(tmp_path / "one.reg")
    assert [watch.changed(PATTERNS) for _ in range(3)] == [False, False, False]


def test_a_second_change_within_one_tick_of_the_clock_is_seen(
    watch: FileWatch, tmp_path: Path
) -> None:
    now = time.time()
    for text in ("2", "3"):
        (tmp_path / "one.reg").write_text(text)
        os.utime(tmp_path / "one.reg", (now, now))
        assert [watch.changed(PATTERNS) for _ in range(3)] == [False, True, False]


def test_a_file_that_goes_is_a_change(watch: FileWatch, tmp_path: Path) -> None:
    (tmp_path / "one.reg").unlink()
    assert [watch.changed(PATTERNS) for _ in range(3)] == [False, True, False]


def test_a_link_that_leads_to_itself_is_a_change_and_no_end(
    watch: FileWatch, tmp_path: Path
) -> None:
    (tmp_path / "loop.reg").symlink_to("loop.reg")
    assert [watch.changed(PATTERNS) for _ in range(3)] == [False, True, False]
    faults = read_registration(tmp_path / "loop.reg").faults
    assert ["symbolic links" in fault.reason for fault in faults] == [True]


def at_once(work: Callable[[], Iterable[object]]) -> list[object] | None:
    """What it comes to; None if it waits, which is left to itself."""
    told: list[object] = []
    thread = threading.Thread(target=lambda: told.extend(work()), daemon=True)
    thread.start()
    thread.join(30)
    return None if thread.is_alive() else told


@pytest.mark.parametrize(
    ("name", "kind"), [("f", "a FIFO"), ("d", "a directory"), ("n", "a device")]
)
def test_what_is_no_file_is_not_read_and_refused_by_name(
    watch: FileWatch, tmp_path: Path, name: str, kind: str
) -> None:
    os.mkfifo(tmp_path / "f.reg")
    (tmp_path / "d.reg").mkdir()
    (tmp_path / "n.reg").symlink_to("/dev/null")
    looks = at_once(lambda: [watch.changed(PATTERNS) for _ in range(3)])
    assert looks == [False, True, False]
    path = tmp_path / f"{name}.reg"
    assert at_once(lambda: map(str, read_registration(path).faults)) == [
        f"{path}: is {kind}, not a file"
    ]
