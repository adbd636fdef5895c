"""What every test may ask for."""

import sys
from pathlib import Path
from typing import Any

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


class Together(LoadScopeScheduling):  # type: ignore[misc]
    """What shares a Synapse, or loads the machine by itself, goes to one process; else a file."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        together = [one for one in ("tests/homeserver", "tests/faults") if file.startswith(one)]
        return together[0] if together else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    """With several processes: who runs what."""
    return Together(config, log)
