"""Dead letters as an operator sees them: found, listed, discarded; never their payload."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.domain.transaction import Kind
from appservice_bridge.storage import ledger, registrations, repeats
from appservice_bridge.storage.database import Connection

SHOWN: Final = 8  # characters of an id, where it is short
_LEAST: Final = "00000000-0000-0000-0000-000000000000"
_MOST: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"
_EVENT_ID: Final = re.compile(r"\$\S+")
_BEGINNING: Final = re.compile(r"[0-9a-f-]{1,36}")

NEWEST: Final = """
-- letters.newest: of one appservice, or of all and of nobody
select n.*, (select count(*) from dead_letter c
              where c.appservice_id = coalesce($1, c.appservice_id)) as total
  from (select d.appservice_id, d.dead_letter_id, d.buried_at, d.kind, d.reason, d.status,
               d.errcode, d.txn_id, d.user_id, d.device_id,
               coalesce(octet_length(d.payload), 0) as bytes,
               d.redrivable or d.user_id is not null and d.payload is null
                   and d.kind in ('device_list', 'device_keys') as redrivable
          from dead_letter d where d.appservice_id = coalesce($1, d.appservice_id)
         order by d.buried_at desc, d.dead_letter_id limit $2) n
 order by n.buried_at, n.dead_letter_id
"""

BETWEEN: Final = """
-- letters.between: two are enough to know that an id's beginning is not its own
select d.appservice_id, d.dead_letter_id, d.buried_at, d.kind, d.reason, d.status,
       d.errcode, d.txn_id, d.user_id, d.device_id,
       coalesce(octet_length(d.payload), 0) as bytes,
       d.redrivable or d.user_id is not null and d.payload is null
           and d.kind in ('device_list', 'device_keys') as redrivable
  from dead_letter d where d.dead_letter_id between $1 and $2 limit 2
"""

NAMED: Final = """
-- letters.named
select d.appservice_id, d.dead_letter_id, d.buried_at, d.kind, d.reason, d.status,
       d.errcode, d.txn_id, d.user_id, d.device_id,
       coalesce(octet_length(d.payload), 0) as bytes,
       d.redrivable or d.user_id is not null and d.payload is null
           and d.kind in ('device_list', 'device_keys') as redrivable
  from dead_letter d where d.dead_letter_id = any($1::uuid[])
 order by d.buried_at, d.dead_letter_id
"""

PAGE: Final = """
-- letters.page: of one appservice, the newest first, older than the one at $2 with id $3
select d.appservice_id, d.dead_letter_id, d.buried_at, d.kind, d.reason, d.status,
       d.errcode, d.txn_id, d.user_id, d.device_id,
       coalesce(octet_length(d.payload), 0) as bytes,
       d.redrivable or d.user_id is not null and d.payload is null
           and d.kind in ('device_list', 'device_keys') as redrivable
  from dead_letter d
 where d.appservice_id = $1 and (d.buried_at, d.dead_letter_id) < ($2, $3)
 order by d.buried_at desc, d.dead_letter_id desc limit $4
"""

IDS: Final = """
-- letters.ids: of one appservice, in the order in which they were buried
select dead_letter_id from dead_letter where appservice_id = $1
 order by buried_at, dead_letter_id
"""

DISCARD: Final = """
-- letters.discard
delete from dead_letter where appservice_id = $1 and dead_letter_id = any($2::uuid[])
returning dead_letter_id, kind, reason, payload is null as named
"""


class NoDeadLetterError(BridgeError):
    """No dead letter has an id that begins so; maybe it was redriven or discarded meanwhile."""

    def __init__(self, beginning: str) -> None:
        super().__init__(
            f"no dead letter {beginning}: `appservice-bridge dead-letters` lists those there are"
        )


class AmbiguousDeadLetterError(BridgeError):
    """More than one dead letter's id begins so; give more of it."""

    def __init__(self, beginning: str) -> None:
        super().__init__(
            f"more than one dead letter's id begins with {beginning}: give more of it, "
            "`dead-letters --json` shows all of it"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One dead letter, without what is in it.

    Attributes:
        appservice_id: '' where it is nobody's.
        reason: why it was buried; no words of an answer.
        status: of the HTTP answer that refused it, with `errcode`; None if nobody was asked.
        txn_id: of the transaction in which it was refused.
        bytes: of its payload.
        redrivable: it can be sent, or told, again.
    """

    appservice_id: str
    dead_letter_id: UUID
    buried_at: datetime
    kind: str
    reason: str
    status: int | None
    errcode: str | None
    txn_id: str | None
    user_id: str | None
    device_id: str | None
    bytes: int
    redrivable: bool

    @property
    def short_id(self) -> str:
        """As much of the id as people need."""
        return str(self.dead_letter_id)[:SHOWN]


async def newest(
    conn: Connection, appservice_id: str | None, *, most: int
) -> tuple[list[Letter], int]:
    """The newest letters of an appservice, or of all, oldest first; and how many there are."""
    rows = await conn.fetch(NEWEST, appservice_id, most)
    letters = [dict(row) for row in rows]
    total = letters[0]["total"] if letters else 0
    return [Letter(**{k: v for k, v in row.items() if k != "total"}) for row in letters], total


async def find(conn: Connection, beginning: str) -> Letter:
    """The letter whose id begins so.

    Raises:
        NoDeadLetterError, AmbiguousDeadLetterError: as they say.
    """
    given = beginning.strip().lower()
    if not _BEGINNING.fullmatch(given):
        raise NoDeadLetterError(beginning)
    try:
        bounds = UUID(given + _LEAST[len(given) :]), UUID(given + _MOST[len(given) :])
    except ValueError:
        raise NoDeadLetterError(beginning) from None
    rows = await conn.fetch(BETWEEN, *bounds)
    if not rows:
        raise NoDeadLetterError(beginning)
    if len(rows) > 1:
        raise AmbiguousDeadLetterError(beginning)
    return Letter(**rows[0])


async def named(conn: Connection, some: Sequence[UUID]) -> list[Letter]:
    """The letters with these ids that there are, in the order in which they were buried."""
    return [Letter(**row) for row in await conn.fetch(NAMED, some)]


async def page(
    conn: Connection, appservice_id: str, *, after: tuple[datetime, UUID], most: int
) -> list[Letter]:
    """The newest letters of an appservice that are older than a moment and an id."""
    return [Letter(**row) for row in await conn.fetch(PAGE, appservice_id, *after, most)]


async def ids(conn: Connection, appservice_id: str) -> list[UUID]:
    """All letters of an appservice, in the order in which they were buried."""
    return [row["dead_letter_id"] for row in await conn.fetch(IDS, appservice_id)]


async def discard(conn: Connection, appservice_id: str, letters: Sequence[UUID]) -> set[UUID]:
    """Delete letters for good, and count them; returns those that were there.

    A room event that a letter only names counts as come: nobody is to miss or look for it again.

    Dying before the commit discards nothing.
    """
    await registrations.wait_for_gate(conn)
    rows = await conn.fetch(DISCARD, appservice_id, letters)
    kinds = Counter(row["kind"] for row in rows)
    if kinds:
        keys = {
            ledger.LedgerKey(appservice_id, kind, LedgerOutcome.DISCARDED): n
            for kind, n in kinds.items()
        }
        await ledger.count(conn, keys)
    reasons = [row["reason"] for row in rows if row["named"] and row["kind"] == Kind.EVENT]
    if events := sorted({id_ for reason in reasons for id_ in _EVENT_ID.findall(reason)}):
        digests = [hashlib.sha256(id_.encode()).digest() for id_ in events]
        await repeats.first_seen(conn, [repeats.EventKey(appservice_id, one) for one in digests])
    return {row["dead_letter_id"] for row in rows}
