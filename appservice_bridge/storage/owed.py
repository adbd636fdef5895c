"""What is sealed and not acknowledged, as an operator sees it; never its bytes."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from appservice_bridge.storage.database import Connection

OWED: Final = """
-- owed.owed: in the order in which they are sent
select s.txn_id, s.number, s.items, s.device_lists, s.device_keys, s.body_bytes, s.sealed_at,
       s.refusals, s.refused_since, s.doubtful, s.part_of, s.bury_asked_at
  from sealed s where s.appservice_id = $1 order by s.first_position, s.last_position, s.number
"""

LAST: Final = """
-- owed.last
select failed_attempts, failing_since, last_outcome, last_status, last_attempt_at, last_ack_at,
       paused_at, split_asked_at, body_cap_bytes,
       greatest(0, extract(epoch from due_at)::float8
                 - extract(epoch from clock_timestamp())::float8) as rest_seconds
  from lane where appservice_id = $1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwedTransaction:
    """A transaction that the appservice has not acknowledged.

    Attributes:
        device_lists: users named in its device lists; `device_keys`: devices with counts.
        refusals: that count against it; a part of one that was doubtful begins with some, though
            it was not sent yet.
        doubtful: an attempt of it ended without an answer, so it may have been processed.
        part_of: number of the transaction that it was split off.
        bury_asked_at: since when an operator wants it set aside.
    """

    txn_id: str
    number: int
    items: int
    device_lists: int
    device_keys: int
    body_bytes: int
    sealed_at: datetime
    refusals: int
    refused_since: datetime | None
    doubtful: bool
    part_of: int | None
    bury_asked_at: datetime | None

    @property
    def things(self) -> int:
        """Items, and users and devices that it tells of."""
        return self.items + self.device_lists + self.device_keys


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneLast:
    """What came of a lane's attempts last.

    Attributes:
        failed_attempts: since the last ack, of the first transaction that is owed.
        body_cap_bytes: learnt from an appservice that found bodies too large.
        rest_seconds: until the next attempt; infinite for a lane that was halted.
    """

    failed_attempts: int
    failing_since: datetime | None
    last_outcome: str | None
    last_status: int | None
    last_attempt_at: datetime | None
    last_ack_at: datetime | None
    paused_at: datetime | None
    split_asked_at: datetime | None
    body_cap_bytes: int | None
    rest_seconds: float


async def owed(conn: Connection, appservice_id: str) -> list[OwedTransaction]:
    """All that is sealed for an appservice, the next to be sent first."""
    return [OwedTransaction(**row) for row in await conn.fetch(OWED, appservice_id)]


async def last(conn: Connection, appservice_id: str) -> LaneLast | None:
    """What came last of the lane's attempts; None if there is no such lane."""
    row = await conn.fetchrow(LAST, appservice_id)
    return None if row is None else LaneLast(**row)
