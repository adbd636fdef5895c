"""What is measured from outside, beside what `overview` tells of lanes: each figure in one query.

Every query is bounded: by the number of appservices, and by so many rows of each.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from appservice_bridge.storage.database import Connection

LOOKED_AT: Final = 1_000
"""Waiting items of an appservice among which its oldest to-device message is looked for."""

COUNTED: Final = 100_000
"""Facts of the log are counted up to here."""

DEVICES: Final = 1_000
"""Devices of an appservice whose keys are counted."""

FEW_KEYS: Final = 10
_ALGORITHM: Final = "signed_curve25519"

OLDEST_TO_DEVICE: Final = """
-- figures.oldest_to_device: among the next $1 that wait
select l.appservice_id,
       extract(epoch from clock_timestamp() - o.captured_at)::float8 as seconds
  from lane l
 cross join lateral (
       select captured_at
         from (select position, kind, captured_at from outbox w
                where w.appservice_id = l.appservice_id and w.position > l.acked_to
                order by position limit $1) next
        where kind = 'to_device' order by position limit 1) o
"""

LEDGER: Final = """
-- figures.ledger
select appservice_id, kind, outcome, items from ledger
"""

BRIDGE: Final = """
-- figures.bridge: all that is nobody's
select (select count(*) from (select from capture_log limit $1) c) as facts,
       extract(epoch from clock_timestamp() - (
           select captured_at from capture_log order by seq limit 1))::float8 as oldest_seconds,
       (select count(*) from worker
         where alive_until between clock_timestamp()
                               and clock_timestamp() + interval '1 minute') as workers,
       (select count(*) from dead_letter where appservice_id = '') as dead_letters
"""

LOW_IN_SYNAPSE: Final = """
-- figures.low_in_synapse: of an appservice's first $1 devices those with fewer keys than $2
select l.appservice_id, count(*) as devices
  from lane l
 cross join lateral (
       select user_id, device_id from device_key_state k
        where k.appservice_id = l.appservice_id order by user_id, device_id limit $1) d
 where (select count(*)
          from (select from public.e2e_one_time_keys_json o
                 where o.user_id = d.user_id and o.device_id = d.device_id
                   and o.algorithm = $3 limit $2) left_over) < $2
 group by l.appservice_id
"""

SAID: Final = """
-- figures.said: what the homeserver said last of an appservice's first $1 devices
select l.appservice_id, d.counts
  from lane l
 cross join lateral (
       select counts from device_key_state k
        where k.appservice_id = l.appservice_id order by user_id, device_id limit $1) d
 where d.counts is not null
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeFigures:
    """Of the bridge as a whole.

    Attributes:
        facts: captured and not routed yet, counted up to `COUNTED`.
        oldest_seconds: since the first of them was captured; None: there are none.
        workers: that say they are alive.
        dead_letters: that are no appservice's.
    """

    facts: int
    oldest_seconds: float | None
    workers: int
    dead_letters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """One count of the ledger; `appservice_id` is '' where it is nobody's."""

    appservice_id: str
    kind: str
    outcome: str
    items: int


async def oldest_to_device(conn: Connection) -> dict[str, float]:
    """Age in seconds of the oldest to-device message that waits, where one is among the next."""
    rows = await conn.fetch(OLDEST_TO_DEVICE, LOOKED_AT)
    return {row["appservice_id"]: row["seconds"] for row in rows}


async def ledger(conn: Connection) -> list[Counted]:
    """Every count there is."""
    return [Counted(**row) for row in await conn.fetch(LEDGER)]


async def bridge(conn: Connection) -> BridgeFigures:
    """What is nobody's."""
    (row,) = await conn.fetch(BRIDGE, COUNTED)
    return BridgeFigures(**row)


async def low_in_synapse(conn: Connection) -> Mapping[str, int]:
    """How many devices of each appservice have few keys left, where some have."""
    rows = await conn.fetch(LOW_IN_SYNAPSE, DEVICES, FEW_KEYS, _ALGORITHM)
    return {row["appservice_id"]: row["devices"] for row in rows}


async def low_as_said(conn: Connection) -> Mapping[str, int]:
    """The same, as any other homeserver said it last."""
    rows = await conn.fetch(SAID, DEVICES)
    return Counter(id_ for id_, said in rows if json.loads(said).get(_ALGORITHM, 0) < FEW_KEYS)
