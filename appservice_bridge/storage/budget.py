"""For whom there is room: what waits is held against the budget where it is written."""

from collections.abc import Sequence
from typing import Final

from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.storage.database import Connection

OVER_BUDGET: Final = """
-- budget.over_budget: those of $1 with $2 bytes waiting or more; all when the budget is used up
select a.appservice_id
  from unnest($1::text[]) as a(appservice_id)
 where (select keys_only from capture_watch)
    or (select h.bytes_in - l.bytes_out from outbox_head h join lane l using (appservice_id)
         where h.appservice_id = a.appservice_id) >= $2
"""

KEYS_ONLY: Final = """
-- budget.keys_only
select coalesce((select keys_only from capture_watch), false)
"""


class OverBudgetError(BridgeError):
    """There is no room for more; whoever brings it must keep it and come again."""

    def __init__(self, appservice_id: str | None = None) -> None:
        whose = "anyone" if appservice_id is None else f"appservice {appservice_id}"
        super().__init__(f"no room for more of {whose}")
        self.appservice_id = appservice_id


async def over_budget(
    conn: Connection, appservice_ids: Sequence[str], *, appservice_bytes: int
) -> set[str]:
    """Those of these appservices for whom no payload must be stored now."""
    rows = await conn.fetch(OVER_BUDGET, appservice_ids, appservice_bytes)
    return {row["appservice_id"] for row in rows}


async def require_space(conn: Connection, appservice_id: str, *, appservice_bytes: int) -> None:
    """Refuse more for an appservice that is over its part of the budget.

    Raises:
        OverBudgetError: it is, or the whole budget is used up.
    """
    if await over_budget(conn, [appservice_id], appservice_bytes=appservice_bytes):
        raise OverBudgetError(appservice_id)


async def is_used_up(conn: Connection) -> bool:
    """Whether nothing but keys is stored, for anyone."""
    return bool(await conn.fetchval(KEYS_ONLY))
