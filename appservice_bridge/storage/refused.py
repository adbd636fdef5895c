"""One thing that an appservice does not take, and it alone: set aside, with the answer if any."""

from dataclasses import dataclass, field
from typing import Final

from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.domain.transaction import AlteredTransactionError
from appservice_bridge.storage import ledger, outbox, untold
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.ledger import LedgerKey
from appservice_bridge.storage.sealed import Sealed

REFUSED: Final = "the appservice refused it"
ORDERED: Final = "set aside by an operator"

BURY_ITEM: Final = """
-- refused.bury_item: only for who holds the lane's row
with dead as (
    update outbox o set kind = 'dropped', payload = ''
      from (select * from outbox
             where appservice_id = $1 and position between $2 and $3 and kind <> 'dropped') was
     where o.appservice_id = was.appservice_id and o.position = was.position
    returning was.position, was.kind, was.user_id, was.device_id, was.stream_id, was.payload
), buried as (
    insert into dead_letter (appservice_id, kind, reason, user_id, device_id, stream_id, payload,
                             redrivable, txn_id, status, errcode, answer)
    select $1, kind, $4, user_id, device_id, stream_id, payload,
           not exists (select from deleted_device d
                        where d.appservice_id = $1 and d.user_id = dead.user_id
                          and d.device_id = dead.device_id
                          and (dead.position <= d.upto
                               or dead.position <= d.needed_to
                                  and dead.stream_id <= d.inbox_upto)),
           $5, $6, $7, $8 from dead
)
select kind, octet_length(payload) as bytes from dead
"""

BURY_UPDATE: Final = """
-- refused.bury_update: state, of which a later one may come; there is nothing to put back
insert into dead_letter (appservice_id, kind, reason, user_id, device_id,
                         txn_id, status, errcode, answer)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How it was refused; the text is kept for an operator, and never logged."""

    status: int
    errcode: str | None
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounds:
    """Why something is set aside.

    Attributes:
        answer: to the last attempt; None: there was none.
        ordered: an operator wants it.
    """

    answer: Answer | None = None
    ordered: bool = False

    @property
    def reason(self) -> str:
        """As the dead letter says it."""
        return ORDERED if self.ordered else REFUSED

    @property
    def told(self) -> tuple[int | None, str | None, str | None]:
        """Status, error code and text of the answer."""
        if self.answer is None:
            return None, None, None
        return self.answer.status, self.answer.errcode, self.answer.text


async def bury_item(conn: Connection, appservice_id: str, of: Sealed, grounds: Grounds) -> None:
    """Set the one item of a transaction aside; the lane's row must be held.

    Raises:
        AlteredTransactionError: there is not one item; roll back.
    """
    why = (grounds.reason, of.txn_id, *grounds.told)
    dead = await conn.fetch(BURY_ITEM, appservice_id, of.first_position, of.last_position, *why)
    if len(dead) != 1:
        raise AlteredTransactionError(of.txn_id)
    await outbox.count_out(conn, appservice_id, dead[0]["bytes"])
    await ledger.count(conn, {LedgerKey(appservice_id, dead[0]["kind"], LedgerOutcome.BURIED): 1})


async def bury_update(conn: Connection, appservice_id: str, of: Sealed, grounds: Grounds) -> None:
    """Say of the one user or device that a transaction tells of that it is not told.

    What changed again meanwhile is told in another transaction, and nothing is given up.
    """
    for one in await untold.drop(conn, appservice_id, number=of.number):
        whom = (one.user_id, one.device_id)
        await conn.execute(
            BURY_UPDATE, appservice_id, one.kind, grounds.reason, *whom, of.txn_id, *grounds.told
        )
        await ledger.count(conn, {LedgerKey(appservice_id, one.kind, LedgerOutcome.BURIED): 1})
