"""What every test may ask for."""

import sys
from pathlib import Path

import pytest

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


@pytest.hookimpl(tryfirst=True)  # before the marks are read
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What shares a Synapse, or loads the machine by itself, goes to one process; else a file."""
    for item in items:
        path = item.path.relative_to(Path(__file__).parent)
        together = path.parts[0] in ("homeserver", "faults")
        item.add_marker(pytest.mark.xdist_group(path.parts[0] if together else str(path)))
