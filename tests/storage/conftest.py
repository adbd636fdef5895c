"""Databases in other states than migrated and empty."""

import itertools
from collections.abc import Iterator

import psycopg2
import pytest

from appservice_bridge.dev.postgres import EmbeddedPostgres

NUMBERS = itertools.count(1)


@pytest.fixture
def empty_database(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The DSN of a database with nothing in it."""
    name = f"empty_{next(NUMBERS)}"
    connection = psycopg2.connect(postgres_server.dsn())
    connection.autocommit = True
    try:
        connection.cursor().execute(f"create database {name} template template0")
        yield postgres_server.dsn(name)
        connection.cursor().execute(f"drop database {name} with (force)")
    finally:
        connection.close()
