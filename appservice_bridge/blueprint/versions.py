"""Which migrations a database has: statements for whoever applies them with whatever driver."""

import re
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


RECORD_WORKS_FROM: Final = """
-- versions.record_works_from: behind the migration that made the column
update appservice_bridge.schema_version set works_from = $2 where number = $1
"""

NEWER: Final = """
-- versions.newer: what a release with migrations up to $1 does not know; null where nothing is
select max(number) as found, max(coalesce(works_from, number)) as needed
  from appservice_bridge.schema_version where number > $1
"""

_OLDER_WORKERS: Final = re.compile(r"^-- older workers: (?:from (\d{4})|none)$", re.MULTILINE)


class SchemaTooNewError(BridgeError):
    """A newer release migrated this database, and this one may not go on; run that release.

    Attributes:
        found: the newest migration there.
        known: the newest one of this release.
        needed: the oldest that a release must know to go on there; None: nobody looked.
    """

    def __init__(self, found: int, known: int, needed: int | None = None) -> None:
        needs = f", which needs a release that knows {needed:04}," if needed is not None else ""
        super().__init__(
            f"the database has schema {found:04}{needs} and this release knows {known:04}",
            mend="install the release that migrated it, or a newer one",
        )
        self.found = found
        self.known = known
        self.needed = needed


def works_from(migration: str) -> int | None:
    """The oldest migration whose workers may go on behind this one, as its text says.

    None: none may, or those up to 0014, which had no workers before them.
    """
    said = _OLDER_WORKERS.search(migration)
    return int(said[1]) if said is not None and said[1] is not None else None


def lacking(applied: Iterable[int]) -> list[int]:
    """The migrations of this release that are not among those applied.

    Raises:
        SchemaTooNewError: a newer release was here.
    """
    done, known = set(applied), known_migrations()
    if done and max(done) > max(known):
        raise SchemaTooNewError(max(done), max(known))
    return [number for number in known if number not in done]
