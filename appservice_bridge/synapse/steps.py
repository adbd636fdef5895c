"""Each step of installing as one DB transaction of Synapse's; they run in its database threads."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from appservice_bridge.blueprint import capture, roles, seeding, versions
from appservice_bridge.blueprint.files import capture_functions, known_migrations
from appservice_bridge.domain.capture import CLEANING, POLLED, READ, Trigger
from appservice_bridge.domain.owners import Owners

if TYPE_CHECKING:
    from synapse.storage.database import LoggingTransaction

PAGE: Final = 10_000

_COMMIT: Final = ";\ncommit"
_MIGRATING: Final = "set local statement_timeout = 0; set local search_path = appservice_bridge"

FOUND: Final = """
select to_regclass('public.device_inbox') is not null,
       (select quote_ident(pg_get_userbyid(nspowner)) from pg_namespace
         where nspname = 'appservice_bridge' and not pg_has_role(nspowner, 'USAGE'))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a look at the database found, before anything is changed.

    Attributes:
        has_inbox: Synapse's tables are where the bridge looks for them.
        foreign_owner: the role that made the bridge's schema, where Synapse's may not change it.
        missing: triggers that are not there, or do not fire.
        disabled: some are there and do not fire.
    """

    has_inbox: bool
    foreign_owner: str | None
    missing: tuple[Trigger, ...]
    disabled: bool


def look(txn: "LoggingTransaction") -> Found:
    """Read the catalog, which everybody may."""
    ((has_inbox, owner),) = _rows(txn, FOUND)
    present = [(table, name, fires) for table, name, fires in _rows(txn, capture.PRESENT)]
    return Found(
        has_inbox=has_inbox,
        foreign_owner=owner,
        missing=tuple(capture.missing(present)),
        disabled=capture.any_disabled(present),
    )


def ensure_schema(txn: "LoggingTransaction") -> None:
    """Create schema and version table, unless they are there."""
    _run(txn, capture.BEGIN)
    if not _rows(txn, versions.SCHEMA_EXISTS)[0][0]:
        _run(txn, versions.CREATE_SCHEMA)
        _run(txn, versions.CREATE_VERSION_TABLE)


def migrate(txn: "LoggingTransaction") -> list[int]:
    """Apply what is missing, all of it or nothing; returns the numbers.

    Raises:
        SchemaTooNewError: a newer release was here, whose functions stay.
    """
    _run(txn, capture.BEGIN + _MIGRATING)
    _run(txn, versions.LOCK_VERSIONS)
    numbers = versions.lacking(number for (number,) in _rows(txn, versions.APPLIED))
    for number in numbers:
        file = known_migrations()[number]
        text = file.read_text(encoding="utf-8")
        _run(txn, text)
        _run(txn, versions.RECORD, number, file.name)
        if (oldest := versions.works_from(text)) is not None:
            _run(txn, versions.RECORD_WORKS_FROM, number, oldest)
    return numbers


def seed_page(txn: "LoggingTransaction", owners: Owners, after: str) -> tuple[str | None, int]:
    """Put the next users that nobody owns on the list of the foreign.

    Returns the last user looked at, None at the end, and how many were put there. Where a worker
    has been, its registrations decide, and not Synapse's: nobody is put there.
    """
    _run(txn, capture.BEGIN + _MIGRATING)
    _run(txn, seeding.WAIT_FOR_GATE)
    if _rows(txn, seeding.ANNOUNCED)[0][0]:
        return None, 0
    page = [name for (name,) in _rows(txn, seeding.USERS_PAGE, after, PAGE)]
    foreign = [name for name in page if not owners.of(name)]
    if foreign:
        _run(txn, seeding.ADD, foreign)
    return (page[-1] if page else None), len(foreign)


def replace_functions(txn: "LoggingTransaction") -> None:
    """Make the functions this release's."""
    _run(txn, capture.BEGIN)
    _run(txn, capture_functions())


def mend(txn: "LoggingTransaction") -> None:
    """Drop what does not fire; committed in the same message, so that no lock outlasts it."""
    _run(txn, capture.mend() + _COMMIT)


def attach(txn: "LoggingTransaction", table: str, triggers: Iterable[Trigger]) -> None:
    """Make triggers on one table, committed as `mend` is."""
    _run(txn, capture.attach(table, triggers) + _COMMIT)


def grant(txn: "LoggingTransaction", role: str, deletes: bool) -> int:
    """Give the bridge's role what it lacks; returns how many grants that took.

    Args:
        txn: of Synapse's role, who owns the tables.
        role: that the bridge connects as.
        deletes: it cleans the inbox, too.
    """
    _run(txn, capture.BEGIN)
    needed = [(table, "SELECT") for table in READ + POLLED] + list(CLEANING if deletes else ())
    tables, privileges = (list(column) for column in zip(*needed, strict=True))
    found = _rows(txn, roles.LACKING, role, tables, privileges)
    grants = [statement for (statement,) in found]
    for statement in grants:
        _run(txn, statement)
    return len(grants)


def _run(txn: "LoggingTransaction", statement: str, *parameters: object) -> None:
    """Execute on the driver's own cursor: Synapse's takes every ? and % for a parameter."""
    if not parameters:
        txn.txn.execute(statement)
        return
    named = re.sub(r"\$(\d+)", r"%(p\1)s", statement.replace("%", "%%"))
    txn.txn.execute(named, {f"p{number}": one for number, one in enumerate(parameters, 1)})


def _rows(txn: "LoggingTransaction", statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    _run(txn, statement, *parameters)
    return list(txn.txn.fetchall())
