"""What waits to be told of devices: state, of which the latest wins, taken in pages at a seal."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import asyncpg

from appservice_bridge.domain.device_updates import DeviceKeys, DeviceListUpdate
from appservice_bridge.storage.database import (
    Connection,
    SourceUnreadableError,
    reading_synapse,
)

CHANGE_LISTS: Final = """
-- device_updates.change_lists
insert into device_list_update (appservice_id, user_id, change)
select * from unnest($1::text[], $2::text[], $3::text[]) as u(appservice_id, user_id, change)
 order by appservice_id collate "C", user_id collate "C"
on conflict (appservice_id, user_id) do update
   set change = excluded.change, sealed_in = null, captured_at = clock_timestamp()
"""

CHANGE_IF_TRACKED: Final = """
-- device_updates.change_if_tracked: who is tracked no more was told of for the last time
with tracking as (
    select appservice_id, user_id from tracked
     where (appservice_id, user_id) in (select * from unnest($1::text[], $2::text[]))
     order by appservice_id, user_id
       for key share
)
insert into device_list_update (appservice_id, user_id, change)
select appservice_id, user_id, 'changed' from tracking order by appservice_id, user_id
on conflict (appservice_id, user_id) do update
   set change = excluded.change, sealed_in = null, captured_at = clock_timestamp()
returning appservice_id
"""

CHANGE_TRACKED: Final = """
-- device_updates.change_tracked: who tracks the users; one that is being let go is waited for
with tracking as (
    select appservice_id, user_id from tracked where user_id = any($1::text[])
     order by appservice_id, user_id
       for key share
), changed as (
    insert into device_list_update (appservice_id, user_id, change)
    select appservice_id, user_id, 'changed' from tracking order by appservice_id, user_id
    on conflict (appservice_id, user_id) do update
       set change = excluded.change, sealed_in = null, captured_at = clock_timestamp()
    returning appservice_id
)
select distinct appservice_id from changed
"""

CHANGE_KEYS: Final = """
-- device_updates.change_keys: what is not said now stays as it was said before
insert into device_key_state as known
       (appservice_id, user_id, device_id, recount, counts, fallback_types)
select * from unnest($1::text[], $2::text[], $3::text[], $4::boolean[], $5::bytea[], $6::bytea[])
    as u(appservice_id, user_id, device_id, recount, counts, fallback_types)
 order by appservice_id collate "C", user_id collate "C", device_id collate "C"
on conflict (appservice_id, user_id, device_id) do update
   set waiting = true, recount = excluded.recount,
       counts = coalesce(excluded.counts, known.counts),
       fallback_types = coalesce(excluded.fallback_types, known.fallback_types),
       captured_at = clock_timestamp()
"""

FORGET_DEVICES: Final = """
-- device_updates.forget_devices
with gone as materialized (
    select appservice_id, user_id, device_id from device_key_state
     where (appservice_id, user_id, device_id) in (
           select * from unnest($1::text[], $2::text[], $3::text[]))
     order by 1, 2, 3 for update
)
delete from device_key_state k using gone g
 where k.appservice_id = g.appservice_id and k.user_id = g.user_id and k.device_id = g.device_id
"""

WAITING_LISTS: Final = """
-- device_updates.waiting_lists: what is being changed again waits for the next transaction
select user_id, change from device_list_update
 where appservice_id = $1 and sealed_in is null
 order by user_id limit $2 for update skip locked
"""

SEAL_LISTS: Final = """
-- device_updates.seal_lists
update device_list_update set sealed_in = $2 where appservice_id = $1 and user_id = any($3::text[])
"""

WAITING_KEYS: Final = """
-- device_updates.waiting_keys
select user_id, device_id, recount, counts, fallback_types from device_key_state
 where appservice_id = $1 and waiting
 order by user_id, device_id limit $2 for update skip locked
"""

COUNT_KEYS: Final = """
-- device_updates.count_keys: hidden devices are those of cross-signing; nobody is told of them
select d.user_id, d.device_id,
       coalesce((select json_object_agg(c.algorithm, c.keys)
                   from (select k.algorithm, count(*) as keys
                           from public.e2e_one_time_keys_json k
                          where k.user_id = d.user_id and k.device_id = d.device_id
                          group by k.algorithm) c), '{}')::text as counts,
       coalesce((select json_agg(f.algorithm order by f.algorithm)
                   from public.e2e_fallback_keys_json f
                  where f.user_id = d.user_id and f.device_id = d.device_id and not f.used),
                '[]')::text as fallback_types
  from unnest($1::text[], $2::text[]) as w(user_id, device_id)
  join public.devices d on d.user_id = w.user_id and d.device_id = w.device_id
 where not coalesce(d.hidden, false)
"""

KNOWN_KEYS: Final = """
-- device_updates.known_keys
select user_id, device_id, recount, counts, fallback_types from device_key_state
 where appservice_id = $1 order by user_id, device_id limit $2
"""

SEAL_KEYS: Final = """
-- device_updates.seal_keys
update device_key_state k set waiting = false, sealed_in = $2
  from unnest($3::text[], $4::text[]) as s(user_id, device_id)
 where k.appservice_id = $1 and k.user_id = s.user_id and k.device_id = s.device_id
"""

FORGET_KEYS: Final = """
-- device_updates.forget_keys
delete from device_key_state k using unnest($2::text[], $3::text[]) as g(user_id, device_id)
 where k.appservice_id = $1 and k.user_id = g.user_id and k.device_id = g.device_id
"""

ACK_LISTS: Final = """
-- device_updates.ack_lists: what changed meanwhile is in no transaction, and stays. Who is locked
-- is found by name alone: by what it is sealed in each would be looked for among all of them
with told as materialized (
    select user_id from device_list_update
     where appservice_id = $1 and sealed_in = $2 order by user_id for update
)
delete from device_list_update u using told t
 where u.appservice_id = $1 and u.user_id = t.user_id
"""

ACK_KEYS: Final = """
-- device_updates.ack_keys
with told as materialized (
    select user_id, device_id from device_key_state
     where appservice_id = $1 and sealed_in = $2 order by user_id, device_id for update
)
update device_key_state k set sealed_in = null from told t
 where k.appservice_id = $1 and k.user_id = t.user_id and k.device_id = t.device_id
"""


class ListKey(NamedTuple):
    """A user in the device lists of one appservice."""

    appservice_id: str
    user_id: str


class DeviceKey(NamedTuple):
    """A device of one appservice's user."""

    appservice_id: str
    user_id: str
    device_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChange:
    """What is known of a device's keys now.

    Attributes:
        recount: Synapse's tables say it when it is sealed; else what follows, as JSON.
        counts: an object of algorithms and numbers; None: not said.
        fallback_types: an array of algorithms; None: not said.
    """

    recount: bool
    counts: bytes | None = None
    fallback_types: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """How much a transaction takes of what waits.

    Attributes:
        number: the transaction's.
        most: users, and again devices.
        max_bytes: about, of each of the two in the body.
    """

    number: int
    most: int
    max_bytes: int


async def change_lists(conn: Connection, changes: Mapping[ListKey, str]) -> None:
    """These users `changed`, or `left`, for these appservices."""
    await conn.execute(
        CHANGE_LISTS,
        [key.appservice_id for key in changes],
        [key.user_id for key in changes],
        list(changes.values()),
    )


async def change_tracked(conn: Connection, user_ids: Sequence[str]) -> set[str]:
    """These users `changed` for whoever tracks them; returns those appservices."""
    return {row["appservice_id"] for row in await conn.fetch(CHANGE_TRACKED, user_ids)}


async def change_if_tracked(conn: Connection, keys: Sequence[ListKey]) -> set[str]:
    """These users `changed` for these appservices, where they are tracked; returns for whom."""
    columns = [list(column) for column in zip(*keys, strict=True)]
    return {row["appservice_id"] for row in await conn.fetch(CHANGE_IF_TRACKED, *columns)}


async def change_keys(conn: Connection, changes: Mapping[DeviceKey, KeyChange]) -> None:
    """The keys of these devices changed."""
    await conn.execute(
        CHANGE_KEYS,
        [key.appservice_id for key in changes],
        [key.user_id for key in changes],
        [key.device_id for key in changes],
        [change.recount for change in changes.values()],
        [change.counts for change in changes.values()],
        [change.fallback_types for change in changes.values()],
    )


async def forget_devices(conn: Connection, keys: Sequence[DeviceKey]) -> None:
    """These devices are told of no more."""
    columns = [list(column) for column in zip(*keys, strict=True)]
    await conn.execute(FORGET_DEVICES, *columns)


async def take_lists(
    conn: Connection, appservice_id: str, page: Page
) -> tuple[DeviceListUpdate, ...]:
    """Put users who wait into a transaction."""
    rows = await conn.fetch(WAITING_LISTS, appservice_id, page.most)
    taken = rows[: _that_fit([2 * len(row["user_id"].encode()) for row in rows], page.max_bytes)]
    if taken:
        user_ids = [row["user_id"] for row in taken]
        await conn.execute(SEAL_LISTS, appservice_id, page.number, user_ids)
    return tuple(DeviceListUpdate(**row) for row in taken)


async def take_keys(conn: Connection, appservice_id: str, page: Page) -> tuple[DeviceKeys, ...]:
    """Put devices that wait into a transaction, their keys counted now.

    Devices that are gone or hidden are forgotten. Where Synapse's tables cannot be read as they
    are expected, its devices go on waiting; the guard over the capture says what is missing.
    """
    rows = await conn.fetch(WAITING_KEYS, appservice_id, page.most)
    sizes = [5 * len(f"{row['user_id']}{row['device_id']}".encode()) + 200 for row in rows]
    rows = rows[: _that_fit(sizes, page.max_bytes)]
    recounted = await _recount(conn, [row for row in rows if row["recount"]])
    said = [_as_said(row) for row in rows if not row["recount"]]
    if recounted is not None:
        await _forget_gone(conn, appservice_id, rows, recounted)
    keys = (*(recounted or ()), *said)
    if keys:
        devices = [[k.user_id for k in keys], [k.device_id for k in keys]]
        await conn.execute(SEAL_KEYS, appservice_id, page.number, *devices)
    return keys


async def known_keys(conn: Connection, appservice_id: str, *, most: int) -> list[DeviceKeys]:
    """What is unclaimed now of devices that the appservice was told of, or is to be.

    Where Synapse's tables cannot be read, only what the homeserver said itself.
    """
    rows = await conn.fetch(KNOWN_KEYS, appservice_id, most)
    counted = await _recount(conn, [row for row in rows if row["recount"]])
    said = [_as_said(row) for row in rows if not row["recount"]]
    return sorted([*(counted or ()), *said], key=lambda one: (one.user_id, one.device_id))


async def ack(conn: Connection, appservice_id: str, *, number: int) -> None:
    """What this transaction told of devices has arrived.

    Lists are locked before keys, each in order, as intake does.
    """
    await conn.execute(ACK_LISTS, appservice_id, number)
    await conn.execute(ACK_KEYS, appservice_id, number)


async def _recount(conn: Connection, rows: Sequence[asyncpg.Record]) -> list[DeviceKeys] | None:
    if not rows:
        return []
    devices = [[row["user_id"] for row in rows], [row["device_id"] for row in rows]]
    try:
        with reading_synapse():
            async with conn.transaction():
                counted = await conn.fetch(COUNT_KEYS, *devices)
    except SourceUnreadableError:
        return None
    return [_as_said(row) for row in counted]


async def _forget_gone(
    conn: Connection,
    appservice_id: str,
    rows: Sequence[asyncpg.Record],
    recounted: Sequence[DeviceKeys],
) -> None:
    there = {(keys.user_id, keys.device_id) for keys in recounted}
    asked = [(row["user_id"], row["device_id"]) for row in rows if row["recount"]]
    gone = [device for device in asked if device not in there]
    if gone:
        devices = [[user_id for user_id, _ in gone], [device_id for _, device_id in gone]]
        await conn.execute(FORGET_KEYS, appservice_id, *devices)


def _as_said(row: asyncpg.Record) -> DeviceKeys:
    counts, fallback_types = row["counts"], row["fallback_types"]
    return DeviceKeys(
        user_id=row["user_id"],
        device_id=row["device_id"],
        counts=None if counts is None else json.loads(counts),
        fallback_types=None if fallback_types is None else tuple(json.loads(fallback_types)),
    )


def _that_fit(sizes: Sequence[int], max_bytes: int) -> int:
    """How many of the first fit into so many bytes; at least one, where there is one.

    A size counts an entry under every name that it is sent under.
    """
    room = max_bytes
    for count, size in enumerate(sizes):
        room -= size + 10
        if room < 0:
            return max(count, 1)
    return len(sizes)
