"""What every test may ask for."""

from tests.support.database import database, pg, postgres_server

__all__ = ["database", "pg", "postgres_server"]
