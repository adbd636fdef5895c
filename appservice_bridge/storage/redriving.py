"""Dead letters put back: items at the end of the outbox, devices among what has to be told."""

from collections import Counter
from collections.abc import Sequence
from typing import Final
from uuid import UUID

import asyncpg

from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.storage import ledger, notifications, outbox, registrations
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.ledger import LedgerKey
from appservice_bridge.storage.outbox import Routed

TAKE_ITEMS: Final = """
-- redriving.take_items: but for what is for a device that is being deleted
with gone as (
    delete from dead_letter d
     where d.appservice_id = $1 and d.dead_letter_id = any($2::uuid[]) and d.redrivable
       and d.kind in ('event', 'ephemeral', 'to_device')
       and not exists (select from deleted_device g
                        where g.appservice_id = d.appservice_id and g.user_id = d.user_id
                          and g.device_id = d.device_id)
    returning d.*
)
select dead_letter_id, kind, user_id, device_id, stream_id, payload,
       date_part('epoch', clock_timestamp()) as captured_at
  from gone order by buried_at, dead_letter_id
"""

TELL_LISTS: Final = """
-- redriving.tell_lists: as it is now; what waits or is under way is newer. Whom the appservice
-- tracks, or owns devices of, changed; who is not among them left, if somebody follows that.
with letter as materialized (
    select dead_letter_id, user_id collate "C" as user_id from dead_letter
     where appservice_id = $1 and dead_letter_id = any($2::uuid[])
       and kind = 'device_list' and user_id is not null and payload is null
), told as (
    insert into device_list_update (appservice_id, user_id, change)
    select distinct $1, l.user_id,
           case when exists (select from tracked t
                              where t.appservice_id = $1 and t.user_id = l.user_id)
                  or exists (select from device_key_state k
                              where k.appservice_id = $1 and k.user_id = l.user_id)
                  or not exists (select from membership_cursor)
                then 'changed' else 'left' end
      from letter l order by l.user_id
    on conflict (appservice_id, user_id) do nothing
)
delete from dead_letter d using letter l
 where d.appservice_id = $1 and d.dead_letter_id = l.dead_letter_id
returning d.dead_letter_id, d.kind
"""

TELL_KEYS: Final = """
-- redriving.tell_keys: of a device that was forgotten nothing can be told
with known as materialized (
    select d.dead_letter_id, k.user_id, k.device_id
      from dead_letter d
      join device_key_state k on k.appservice_id = $1 and k.user_id = d.user_id
                             and k.device_id = d.device_id
     where d.appservice_id = $1 and d.dead_letter_id = any($2::uuid[])
       and d.kind = 'device_keys' and d.payload is null
     order by k.user_id, k.device_id for update of k
), told as (
    update device_key_state k set waiting = true, captured_at = clock_timestamp()
      from known n
     where k.appservice_id = $1 and k.user_id = n.user_id and k.device_id = n.device_id
)
delete from dead_letter d using known n
 where d.appservice_id = $1 and d.dead_letter_id = n.dead_letter_id
returning d.dead_letter_id, d.kind
"""


async def redrive(conn: Connection, appservice_id: str, letters: Sequence[UUID]) -> set[UUID]:
    """Put letters of one appservice back, in the order they were buried; returns which.

    The rest is left as it is: there is nothing in it that could be sent, its device is gone, or
    another redrive was quicker. The gate is held, so that positions are given by one writer, and
    no deletion of a device is routed meanwhile: one that is captured already comes behind what is
    put back, and drops it. What is sealed is not touched. A message keeps its place in the
    homeserver's inbox, which its ack then clears.

    The ledger counts `redriven`, and `routed` not again: so routed and redriven together are what
    was delivered, buried, dropped, and waits.

    Dying before the commit redrives nothing; after it everything is in the outbox.

    Raises:
        OutboxMissingError: the appservice has none.
    """
    await registrations.wait_for_gate(conn)
    items = await conn.fetch(TAKE_ITEMS, appservice_id, letters)
    told = await conn.fetch(TELL_LISTS, appservice_id, letters)
    told += await conn.fetch(TELL_KEYS, appservice_id, letters)
    if items:
        await outbox.append(conn, [_routed(appservice_id, row) for row in items])
    kinds = Counter(row["kind"] for row in (*items, *told))
    if kinds:
        counts = {
            LedgerKey(appservice_id, kind, LedgerOutcome.REDRIVEN): n for kind, n in kinds.items()
        }
        await ledger.count(conn, counts)
        await notifications.notify(conn, notifications.OUTBOX)
    return {row["dead_letter_id"] for row in (*items, *told)}


def _routed(appservice_id: str, row: asyncpg.Record) -> Routed:
    return Routed(
        appservice_id=appservice_id,
        kind=row["kind"],
        captured_at=row["captured_at"],
        payload=row["payload"],
        user_id=row["user_id"],
        device_id=row["device_id"],
        stream_id=row["stream_id"],
    )
