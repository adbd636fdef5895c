"""What every test may ask for."""

import sys
from pathlib import Path
from typing import Any, Final

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support.database import database, pg, postgres_server
from tests.support.delivered import cleaner
from tests.support.intake import db, intake

__all__ = ["cleaner", "database", "db", "intake", "pg", "postgres_server"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """The same tests run on the system's Postgres, and with another release of Synapse."""
    parser.addoption(
        "--postgres-binaries", type=Path, help="a Postgres of the system instead of the wheel's"
    )
    parser.addoption(
        "--synapse-python",
        default=sys.executable,
        help="a Python with the matrix-synapse that the tests of tests/homeserver start",
    )


# What shares a Synapse, and what kills processes under load: one after the other, in one process.
ONE_BY_ONE: Final = ("tests/delivery/", "tests/faults/", "tests/homeserver/")


class Together(LoadScopeScheduling):  # type: ignore[misc]
    """Each file is run by one process, and what is to run one by one by the same."""

    def _split_scope(self, nodeid: str) -> str:
        return "one by one" if nodeid.startswith(ONE_BY_ONE) else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    """With several processes: who runs what."""
    return Together(config, log)
