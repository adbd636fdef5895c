"""What went in and what came of it, counted in the DB transaction that did it."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.storage.database import Connection

COUNT: Final = """
-- ledger.count
insert into ledger (appservice_id, kind, outcome, items)
select * from unnest($1::text[], $2::text[], $3::text[], $4::bigint[])
on conflict (appservice_id, kind, outcome) do update set items = ledger.items + excluded.items
"""


class LedgerKey(NamedTuple):
    """What is counted.

    Attributes:
        appservice_id: '' where it is nobody's.
        kind: of an item, or of a row of the log.
    """

    appservice_id: str
    kind: str
    outcome: LedgerOutcome


async def count(conn: Connection, counts: Mapping[LedgerKey, int]) -> None:
    """Add to the ledger, always in one order, so that no two who count deadlock."""
    keys = sorted(counts)
    await conn.execute(
        COUNT,
        [key.appservice_id for key in keys],
        [key.kind for key in keys],
        [key.outcome for key in keys],
        [counts[key] for key in keys],
    )
