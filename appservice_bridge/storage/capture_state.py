"""How facts are captured now, and what is wrong with it, for all workers and for operators."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from appservice_bridge.domain.capture import CaptureMode
from appservice_bridge.storage.database import Connection

READ: Final = """
-- capture_state.read
select mode, since, problems, unreadable, looked_at from capture_state
"""

WRITE: Final = """
-- capture_state.write
update capture_state
   set mode = $1, problems = $2, unreadable = $3, looked_at = clock_timestamp(),
       since = case when mode = $1 then since else clock_timestamp() end
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureState:
    """What the last look found.

    Attributes:
        since: when the mode last changed.
        problems: each with how to mend it; none is green.
        unreadable: tables of the homeserver's that are left out.
        looked_at: None before the first look.
    """

    mode: CaptureMode
    since: datetime
    problems: tuple[str, ...]
    unreadable: frozenset[str]
    looked_at: datetime | None


async def read(conn: Connection) -> CaptureState:
    """The state that some worker wrote last."""
    (row,) = await conn.fetch(READ)
    return CaptureState(
        mode=CaptureMode(row["mode"]),
        since=row["since"],
        problems=tuple(row["problems"]),
        unreadable=frozenset(row["unreadable"]),
        looked_at=row["looked_at"],
    )


async def write(
    conn: Connection, mode: CaptureMode, *, problems: Sequence[str], unreadable: frozenset[str]
) -> None:
    """Record what a look found; from the commit on all workers capture this way."""
    await conn.execute(WRITE, mode, list(problems), sorted(unreadable))
