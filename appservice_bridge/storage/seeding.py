"""What an appservice must know from the start, read from what the homeserver holds now."""

from collections.abc import Mapping, Sequence
from typing import Final

from appservice_bridge.storage.database import Connection

CLEAR_RESIDENTS: Final = """
-- seeding.clear_residents
delete from resident where appservice_id = any($1::text[])
"""

ADD_RESIDENTS: Final = """
-- seeding.add_residents: every room that these users are joined in
insert into resident (appservice_id, room_id, user_id)
select u.appservice_id, e.room_id, u.user_id
  from unnest($1::text[], $2::text[]) as u(appservice_id, user_id)
 cross join lateral (select room_id from public.current_state_events
                      where state_key = u.user_id and type = 'm.room.member'
                        and membership = 'join') e
on conflict do nothing
"""

ROOMS_PAGE: Final = """
-- seeding.rooms_page
select distinct room_id from resident where appservice_id = $1 and room_id > $2
 order by room_id limit $3
"""

TRACKED_PAGE: Final = """
-- seeding.tracked_page
select user_id from tracked where appservice_id = $1 and user_id > $2 order by user_id limit $3
"""

FORGET_TRACKED: Final = """
-- seeding.forget_tracked
delete from tracked where appservice_id = $1 and user_id = any($2::text[])
"""

MARK_DEVICES: Final = """
-- seeding.mark_devices: all devices of these users that others may see
insert into device_key_state (appservice_id, user_id, device_id, recount)
select u.appservice_id, u.user_id, d.device_id, true
  from unnest($1::text[], $2::text[]) as u(appservice_id, user_id)
 cross join lateral (select device_id from public.devices
                      where user_id = u.user_id and hidden is not true order by device_id) d
on conflict (appservice_id, user_id, device_id) do update
   set waiting = true, recount = true, captured_at = clock_timestamp()
"""

FORGET_LISTS: Final = """
-- seeding.forget_lists: what is sealed goes with the ack
delete from device_list_update where appservice_id = any($1::text[]) and sealed_in is null
"""

FORGET_KEYS: Final = """
-- seeding.forget_keys: what is sealed goes with the ack
delete from device_key_state where appservice_id = any($1::text[]) and sealed_in is null
"""

FORGET_ALL_TRACKED: Final = """
-- seeding.forget_all_tracked
delete from tracked where appservice_id = any($1::text[])
"""


async def clear_residents(conn: Connection, appservice_ids: Sequence[str]) -> None:
    """Forget in which rooms their users are; only who holds the cursor may."""
    await conn.execute(CLEAR_RESIDENTS, appservice_ids)


async def add_residents(conn: Connection, owned: Mapping[str, Sequence[str]]) -> None:
    """Look up the rooms of users, by appservice; only who holds the cursor may."""
    await conn.execute(ADD_RESIDENTS, *_pairs(owned))


async def rooms_page(conn: Connection, appservice_id: str, *, after: str, size: int) -> list[str]:
    """The next so many rooms that a user of the appservice is joined in, ascending."""
    rows = await conn.fetch(ROOMS_PAGE, appservice_id, after, size)
    return [row["room_id"] for row in rows]


async def tracked_page(conn: Connection, appservice_id: str, *, after: str, size: int) -> list[str]:
    """The next so many users that the appservice was told about, ascending."""
    rows = await conn.fetch(TRACKED_PAGE, appservice_id, after, size)
    return [row["user_id"] for row in rows]


async def forget_tracked(conn: Connection, appservice_id: str, user_ids: Sequence[str]) -> None:
    """These users are the appservice's own, and not tracked."""
    await conn.execute(FORGET_TRACKED, appservice_id, user_ids)


async def mark_devices(conn: Connection, owned: Mapping[str, Sequence[str]]) -> int:
    """Let counts and unused fallback key types of all these users' devices be told again.

    Returns how many devices it is.
    """
    done = await conn.execute(MARK_DEVICES, *_pairs(owned))
    return int(done.split()[2])


async def forget(conn: Connection, appservice_ids: Sequence[str]) -> None:
    """Forget what was kept of devices for appservices that take no part in encryption."""
    for statement in (CLEAR_RESIDENTS, FORGET_ALL_TRACKED, FORGET_LISTS, FORGET_KEYS):
        await conn.execute(statement, appservice_ids)


def _pairs(owned: Mapping[str, Sequence[str]]) -> tuple[list[str], list[str]]:
    pairs = sorted((id_, user_id) for id_, user_ids in owned.items() for user_id in user_ids)
    return [id_ for id_, _ in pairs], [user_id for _, user_id in pairs]
