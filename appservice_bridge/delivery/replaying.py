"""What an appservice acknowledged and lost is put in again, behind all that waits."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from appservice_bridge.domain.author import Author
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.domain.progress import Tell, nobody
from appservice_bridge.domain.transaction import Kind
from appservice_bridge.storage import admin_audit, kept, ledger, notifications, registrations
from appservice_bridge.storage.budget import require_space
from appservice_bridge.storage.database import Connection, Database
from appservice_bridge.storage.ledger import LedgerKey

ACTION: Final = "replay"


class NothingKeptError(BridgeError):
    """There is nothing that could be replayed."""

    def __init__(self, appservice_id: str, keep_seconds: float) -> None:
        kept_for = f"what it took is kept for {keep_seconds:.0f} s"
        if not keep_seconds:
            kept_for = "delivery.keep_delivered_seconds is 0: nothing that it took is kept"
        super().__init__(f"nothing of {appservice_id} to replay; {kept_for}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Of whom something is kept, and how much of it may be put in again.

    Attributes:
        keep_seconds: what was acknowledged longer ago counts as gone.
        appservice_bytes: most that may wait for it.
    """

    appservice_id: str
    keep_seconds: float
    appservice_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What will be delivered again: items by kind, of so many transactions."""

    items: dict[Kind, int]
    transactions: int

    @property
    def told(self) -> str:
        """In words."""
        items = ", ".join(f"{self.items[kind]} {kind}" for kind in Kind if kind in self.items)
        return f"{items} of {self.transactions} transactions will be delivered again"


async def replay_one(database: Database, of: Kept, txn_id: str, *, by: Author) -> Replayed:
    """The transaction with this id.

    Raises:
        NothingKeptError, OverBudgetError: as they say.
    """
    async with database.transaction() as conn:
        numbers = await kept.of_txn_id(conn, of.appservice_id, txn_id, keep_seconds=of.keep_seconds)
    return await _replay(database, of, numbers, by)


async def replay_since(
    database: Database, of: Kept, seconds: float, *, by: Author, tell: Tell = nobody
) -> Replayed:
    """All that was acknowledged within the last so many seconds.

    Raises:
        NothingKeptError, OverBudgetError: as they say.
    """
    async with database.transaction() as conn:
        numbers = await kept.since(conn, of.appservice_id, seconds=min(seconds, of.keep_seconds))
    return await _replay(database, of, numbers, by, tell)


async def _replay(
    database: Database, of: Kept, numbers: Sequence[int], by: Author, tell: Tell = nobody
) -> Replayed:
    """Dying in between leaves the oldest replayed and the rest as it was."""
    told: Counter[Kind] = Counter()
    for done, number in enumerate(numbers, start=1):
        async with database.transaction() as conn:
            told.update(await _put_in(conn, of, number, by))
        tell(done, len(numbers))
    if not told:
        raise NothingKeptError(of.appservice_id, of.keep_seconds)
    return Replayed(items=dict(told), transactions=len(numbers))


async def _put_in(conn: Connection, of: Kept, number: int, by: Author) -> dict[Kind, int]:
    """Dying before the commit leaves the outbox as it was.

    Raises:
        OverBudgetError: there is no room for it to wait.
    """
    await registrations.wait_for_gate(conn)  # whoever holds it gives the positions
    await require_space(conn, of.appservice_id, appservice_bytes=of.appservice_bytes)
    told = await kept.replay(conn, of.appservice_id, number)
    if told:
        replayed = LedgerOutcome.REPLAYED
        counts = {LedgerKey(of.appservice_id, kind, replayed): n for kind, n in told.items()}
        await ledger.count(conn, counts)
        await admin_audit.write(
            conn,
            by,
            ACTION,
            appservice_id=of.appservice_id,
            subjects=[f"transaction {number}"],
            outcome=f"{sum(told.values())} items replayed",
        )
        await notifications.notify(conn, notifications.OUTBOX)
    return told
