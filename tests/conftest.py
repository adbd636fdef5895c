"""What every test may ask for."""

from tests.support.database import database, pg, postgres_server
from tests.support.intake import db, intake

__all__ = ["database", "db", "intake", "pg", "postgres_server"]
