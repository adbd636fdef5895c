"""What every test may ask for."""

from pathlib import Path

import pytest

from tests.support.database import database, pg, postgres_server
from tests.support.intake import db, intake

__all__ = ["database", "db", "intake", "pg", "postgres_server"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make test-system` runs the same tests on the system's Postgres."""
    parser.addoption(
        "--postgres-binaries", type=Path, help="a Postgres of the system instead of the wheel's"
    )
