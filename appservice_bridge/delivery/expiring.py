"""Leaves out of a seal what is too old to be worth telling: typing and presence, nothing else."""

from collections.abc import Sequence

from appservice_bridge.domain.expiry import Expiry
from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.domain.transaction import Item, Kind
from appservice_bridge.storage import ledger, outbox
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.ledger import LedgerKey


async def without_expired(
    conn: Connection, appservice_id: str, items: Sequence[Item], expiry: Expiry
) -> Sequence[Item]:
    """The items, emptied where their time to live is over; it asks nothing where none is.

    Only for who is about to seal them, in the same DB transaction: what is sealed never changes.
    Dying before its commit leaves them as they were.
    """
    over = [item for item in items if item.waited is not None and expiry.is_over(item.waited)]
    if not over:
        return items
    positions = {item.position for item in over}
    await outbox.drop(conn, appservice_id, sorted(positions))
    await outbox.count_out(conn, appservice_id, sum(len(item.payload) for item in over))
    key = LedgerKey(appservice_id, Kind.EPHEMERAL, LedgerOutcome.EXPIRED)
    await ledger.count(conn, {key: len(over)})
    return [_emptied(item) if item.position in positions else item for item in items]


def _emptied(item: Item) -> Item:
    return Item(position=item.position, kind=Kind.DROPPED, payload=b"")
