"""What was taken in is remembered, to tell repeats, for as long as they may come."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from appservice_bridge.storage.database import Connection

# Longer than any look-back: Synapse gives up on nothing, but an outage of a month is no outage.
KEEP_DAYS: Final = 30
BATCH: Final = 5000

TAKE: Final = """
-- repeats.take: the rows of the homeserver's inbox that nobody took before
insert into taken (user_id, device_id, stream_id)
select * from unnest($1::text[], $2::text[], $3::bigint[])
on conflict do nothing
returning user_id, device_id, stream_id
"""

TAKE_CHANGES: Final = """
-- repeats.take_changes: the changes of devices in the homeserver's stream that nobody took before
insert into taken_device_change (stream_id, user_id, device_id)
select * from unnest($1::bigint[], $2::text[], $3::text[])
on conflict do nothing
returning stream_id, user_id, device_id
"""

FIRST_SEEN: Final = """
-- repeats.first_seen: the room events that were not routed to their appservice before
insert into seen_event (appservice_id, event_digest)
select * from unnest($1::text[], $2::bytea[])
on conflict do nothing
returning appservice_id, event_digest
"""

FORGET_RELAYED: Final = """
-- repeats.forget_relayed
delete from relayed r using (
    select appservice_id, digest from relayed
     where received_at < now() - make_interval(days => $1) limit $2) old
 where r.appservice_id = old.appservice_id and r.digest = old.digest
"""

FORGET_EVENTS: Final = """
-- repeats.forget_events
delete from seen_event s using (
    select appservice_id, event_digest from seen_event
     where seen_at < now() - make_interval(days => $1) limit $2) old
 where s.appservice_id = old.appservice_id and s.event_digest = old.event_digest
"""


class InboxKey(NamedTuple):
    """A row of the homeserver's inbox."""

    user_id: str
    device_id: str
    stream_id: int


class ChangeKey(NamedTuple):
    """A row of the homeserver's stream of device lists.

    Attributes:
        device_id: '' where the row names none.
    """

    stream_id: int
    user_id: str
    device_id: str


class EventKey(NamedTuple):
    """A room event on its way to one appservice.

    Attributes:
        event_digest: SHA-256 of the event id.
    """

    appservice_id: str
    event_digest: bytes


async def take(conn: Connection, keys: Sequence[InboxKey]) -> set[InboxKey]:
    """Record rows of the inbox as routed; returns those that nobody had."""
    columns = [list(column) for column in zip(*keys, strict=True)] or [[], [], []]
    return {InboxKey(*row) for row in await conn.fetch(TAKE, *columns)}


async def take_changes(conn: Connection, keys: Sequence[ChangeKey]) -> set[ChangeKey]:
    """Record changes of devices as routed; returns those that nobody had."""
    columns = [list(column) for column in zip(*keys, strict=True)]
    return {ChangeKey(*row) for row in await conn.fetch(TAKE_CHANGES, *columns)}


async def first_seen(conn: Connection, keys: Sequence[EventKey]) -> set[EventKey]:
    """Record room events as routed; returns those not seen before."""
    columns = [list(column) for column in zip(*keys, strict=True)] or [[], []]
    return {EventKey(*row) for row in await conn.fetch(FIRST_SEEN, *columns)}


async def forget(conn: Connection, *, days: int = KEEP_DAYS, batch: int = BATCH) -> int:
    """Forget one batch of what is older than so many days; returns how much it was."""
    statements = (FORGET_RELAYED, FORGET_EVENTS)
    done = [await conn.execute(statement, days, batch) for statement in statements]
    return sum(int(result.split()[1]) for result in done)
