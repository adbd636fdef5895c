"""What can never be delivered, set aside for an operator."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.storage import capture_log, ledger
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.deleted_devices import DeletedInbox
from appservice_bridge.storage.device_updates import DeviceKey

BURY: Final = """
-- dead_letters.bury
insert into dead_letter (appservice_id, kind, reason, user_id, device_id, stream_id, payload)
select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[],
                     $7::bytea[])
"""

BURY_ROWS: Final = """
-- dead_letters.bury_rows
insert into dead_letter (appservice_id, kind, reason, user_id, device_id, stream_id, payload)
select coalesce(appservice_id, ''), kind, $2, user_id, device_id, stream_id, body
  from capture_log where seq = any($1::bigint[])
"""

LOSE_DEVICES: Final = """
-- dead_letters.lose_devices: only for who holds the gate
update dead_letter d
   set redrivable = false, reason = d.reason || '; its device was deleted since'
  from unnest($1::text[], $2::text[], $3::text[]) as g(appservice_id, user_id, device_id)
 where d.appservice_id = g.appservice_id and d.user_id = g.user_id
   and d.device_id = g.device_id and d.redrivable
"""

LOSE_INBOXES: Final = """
-- dead_letters.lose_inboxes: the same of what has a place in the inbox up to $4
update dead_letter d
   set redrivable = false, reason = d.reason || '; its device was deleted since'
  from unnest($1::text[], $2::text[], $3::text[], $4::bigint[])
           as g(appservice_id, user_id, device_id, upto)
 where d.appservice_id = g.appservice_id and d.user_id = g.user_id
   and d.device_id = g.device_id and d.stream_id <= g.upto and d.redrivable
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Buried:
    """One item that can never be delivered, set aside for an operator."""

    appservice_id: str
    kind: str
    reason: str
    payload: bytes | None = field(repr=False)
    user_id: str | None = None
    device_id: str | None = None
    stream_id: int | None = None


async def bury(conn: Connection, items: Sequence[Buried]) -> None:
    """Set items aside as dead letters."""
    await conn.execute(
        BURY,
        [item.appservice_id for item in items],
        [item.kind for item in items],
        [item.reason for item in items],
        [item.user_id for item in items],
        [item.device_id for item in items],
        [item.stream_id for item in items],
        [item.payload for item in items],
    )


async def bury_rows(conn: Connection, batch: capture_log.Batch, *, reason: str) -> None:
    """Set rows of the log aside as they are, and consume them.

    Raises:
        LogConsumedElsewhereError: a row was gone.
    """
    done = await conn.execute(BURY_ROWS, [row.seq for row in batch.rows], reason)
    if done != f"INSERT 0 {len(batch.rows)}":
        raise capture_log.LogConsumedElsewhereError(len(batch.rows), int(done.split()[2]))
    keys = [
        ledger.LedgerKey(row.appservice_id or "", row.kind, LedgerOutcome.REFUSED)
        for row in batch.rows
    ]
    await ledger.count(conn, Counter(keys))
    await capture_log.consume(conn, batch)


async def lose_devices(conn: Connection, keys: Sequence[DeviceKey]) -> None:
    """What is set aside for these devices is for nobody any more, also not for their namesakes.

    Only for who holds the gate, as everything that changes letters does.
    """
    columns = [list(column) for column in zip(*keys, strict=True)]
    await conn.execute(LOSE_DEVICES, *columns)


async def lose_inboxes(conn: Connection, inboxes: Sequence[DeletedInbox]) -> None:
    """The same of what has a place in the homeserver's inbox up to there."""
    columns = [list(column) for column in zip(*inboxes, strict=True)]
    await conn.execute(LOSE_INBOXES, *columns)
