"""Every SQL statement is one that Postgres takes, with the schema that is migrated."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from typing import Final

import asyncpg
import pytest

from appservice_bridge import blueprint, storage
from appservice_bridge.storage.database import connect
from tests.support.facts import make_synapse_tables

FIRST_LINE: Final = re.compile(r"\n-- (\w+)\.(\w+)(?::.*)?\n")


def statements() -> Iterator[tuple[str, str, str]]:
    """Module, constant and text of every statement, where it is made."""
    seen: set[str] = set()
    for package in (blueprint, storage):
        for module in pkgutil.iter_modules(package.__path__):
            names = vars(importlib.import_module(f"{package.__name__}.{module.name}"))
            for name, value in names.items():
                if not (isinstance(value, str) and name.isupper() and value.startswith("\n--")):
                    continue
                if value not in seen:
                    yield module.name, name, value
                seen.add(value)


EVERY: Final = list(statements())
OF_SYNAPSE: Final = [one for one in EVERY if "public." in one[2]]
OURS: Final = [one for one in EVERY if one not in OF_SYNAPSE]


def test_statements_are_found_at_all() -> None:
    assert len(OURS) > 30
    modules = {module for module, _, _ in OF_SYNAPSE}
    assert {"synapse", "inbox", "device_updates", "tracking", "seeding"} <= modules


@pytest.mark.parametrize(("module", "name", "text"), EVERY)
def test_the_first_line_of_a_statement_names_it(module: str, name: str, text: str) -> None:
    named = FIRST_LINE.match(text)
    assert named is not None
    assert named[1] == module
    assert named[2] == name.lower() or named[2] in name.lower()


def test_no_two_statements_have_one_name() -> None:
    names = [match[0] for _, _, text in EVERY if (match := FIRST_LINE.match(text))]
    assert len(set(names)) == len(names)


async def test_every_statement_on_our_own_tables_can_be_prepared(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str
) -> None:
    conn = await connect(database)
    for module, name, text in OURS:
        try:
            await conn.prepare(text)
        except asyncpg.PostgresError as error:
            pytest.fail(f"{module}.{name}: {error}")
    await conn.close()


async def test_every_statement_on_synapse_s_tables_can_be_prepared(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str
) -> None:
    await make_synapse_tables(pg)
    await pg.execute(
        "create table public.sliding_sync_connections (user_id text, effective_device_id text)"
    )
    conn = await connect(database)
    for module, name, text in OF_SYNAPSE:
        try:
            await conn.prepare(text)
        except asyncpg.PostgresError as error:
            pytest.fail(f"{module}.{name}: {error}")
    await conn.close()
