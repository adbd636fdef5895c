"""Which migrations a database has: statements for whoever applies them with whatever driver."""

from collections.abc import Iterable
from typing import Final

from appservice_bridge.blueprint.files import known_migrations
from appservice_bridge.domain.errors import BridgeError

SCHEMA_EXISTS: Final = """
-- versions.schema_exists
select to_regclass('appservice_bridge.schema_version') is not null
"""

CREATE_SCHEMA: Final = """
-- versions.create_schema
create schema if not exists appservice_bridge
"""

CREATE_VERSION_TABLE: Final = """
-- versions.create_version_table
create table if not exists appservice_bridge.schema_version (
    number     integer primary key,
    name       text not null,
    applied_at timestamptz not null default clock_timestamp()
)
"""

LOCK_VERSIONS: Final = """
-- versions.lock_versions
lock table appservice_bridge.schema_version in exclusive mode
"""

APPLIED: Final = """
-- versions.applied
select number from appservice_bridge.schema_version order by number
"""

RECORD: Final = """
-- versions.record
insert into appservice_bridge.schema_version (number, name) values ($1, $2)
"""


class SchemaTooNewError(BridgeError):
    """A newer release migrated this database; run that release."""

    def __init__(self, found: int, known: int) -> None:
        super().__init__(
            f"the database has schema {found}, this release knows {known}: install a newer one"
        )
        self.found = found
        self.known = known


def lacking(applied: Iterable[int]) -> list[int]:
    """The migrations of this release that are not among those applied.

    Raises:
        SchemaTooNewError: a newer release was here.
    """
    done, known = set(applied), known_migrations()
    if done and max(done) > max(known):
        raise SchemaTooNewError(max(done), max(known))
    return [number for number in known if number not in done]
