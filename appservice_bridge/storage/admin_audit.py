"""What operators changed: written in the DB transaction of the change, kept for a year."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from appservice_bridge.domain.author import Author
from appservice_bridge.storage.database import Connection

KEEP_DAYS: Final = 400
NEWEST: Final = 2**63 - 1

WRITE: Final = """
-- admin_audit.write
insert into admin_audit (name, role, address, action, appservice_id, subjects, outcome)
values ($1, $2, $3, $4, $5, $6, $7)
"""

PAGE: Final = """
-- admin_audit.page: the newest first
select audit_id, at, name, role, address, action, appservice_id, subjects, outcome
  from admin_audit where audit_id < $1 order by audit_id desc limit $2
"""

FORGET: Final = """
-- admin_audit.forget
delete from admin_audit where audit_id in (
    select audit_id from admin_audit
     where at < clock_timestamp() - make_interval(days => $1) order by at limit $2)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One change.

    Attributes:
        action: the command's name, or the last part of the path at the admin port.
        subjects: what else it was done to, beside the appservice.
        outcome: a few words; never a payload.
    """

    audit_id: int
    at: datetime
    name: str
    role: str
    address: str | None
    action: str
    appservice_id: str | None
    subjects: Sequence[str]
    outcome: str


async def write(
    conn: Connection,
    by: Author,
    action: str,
    *,
    outcome: str,
    appservice_id: str | None = None,
    subjects: Sequence[str] = (),
) -> None:
    """Put down who did what to whom, and what came of it; it holds if the DB transaction does."""
    await conn.execute(
        WRITE, by.name, by.role, by.address, action, appservice_id, list(subjects), outcome
    )


async def page(conn: Connection, *, before: int, most: int) -> list[Entry]:
    """The newest entries with a lower id than `before`."""
    return [Entry(**row) for row in await conn.fetch(PAGE, before, most)]


async def forget(conn: Connection, *, batch: int) -> int:
    """Forget so many at most of what is too old; returns how many."""
    return int((await conn.execute(FORGET, KEEP_DAYS, batch)).split()[1])
