"""Synapse's room events compared with what came from it, and what it forgot put into the log."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import orjson

from appservice_bridge.domain.room_interest import Member, MembershipChange, Room, RoomEvent
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.event_cursor import LOOK_BACK

LONGEST_LOG: Final = 1000  # rows; behind more of them nobody looks for what may be in them
BODIES_AT_ONCE: Final = 10  # in memory

READABLE: Final = """
-- room_events.readable: has_table_privilege knows no table by null
select bool_and(coalesce(has_table_privilege(to_regclass('public.' || name), 'SELECT'), false))
  from unnest(array['events', 'appservice_stream_position', 'application_services_state',
                    'local_current_membership', 'current_state_delta_stream', 'room_memberships',
                    'room_aliases', 'event_json', 'redactions']) as name
"""

POSITION: Final = """
-- room_events.position: up to where Synapse has handed events to its own sender, and the last one
select (select coalesce(max(stream_ordering), 0) from public.appservice_stream_position),
       (select coalesce(max(stream_ordering), 0) from public.events)
"""

UNSEEN: Final = """
-- room_events.unseen: Synapse sends no rejected event; a dummy holds nothing, and no user sees it
select e.stream_ordering, e.event_id, e.room_id, e.type, e.sender, e.state_key
  from public.events e
 where e.stream_ordering > $2 and e.stream_ordering <= $3 and e.rejection_reason is null
   and e.type <> 'org.matrix.dummy_event'
   and not exists (select from seen_event s
                    where s.appservice_id = $1
                      and s.event_digest = sha256(convert_to(e.event_id, 'UTF8')))
 order by e.stream_ordering
 limit $4
"""

UNSEEN_WITHIN: Final = """
-- room_events.unseen_within: the same of each room before its event in $2 and behind its one in $3;
-- of what is older than $6 it is not known any more whether it came
with span as materialized (
  select f.room_id, f.stream_ordering as before,
         greatest(c.settled, $4::bigint, k.stream_ordering) as behind
    from event_cursor c
   cross join unnest($2::text[], $3::text[]) as of(before, behind)
    join public.events f on f.event_id = of.before
    left join public.events k on k.event_id = of.behind
   where c.appservice_id = $1)
select e.stream_ordering, e.event_id, e.room_id, e.type, e.sender, e.state_key
  from span
  join public.events e on e.room_id = span.room_id
   and e.stream_ordering > span.behind and e.stream_ordering < span.before
 where e.rejection_reason is null and e.type <> 'org.matrix.dummy_event'
   and (e.received_ts is null or e.received_ts > extract(epoch from now() - $6::interval) * 1000)
   and not exists (select from seen_event s
                    where s.appservice_id = $1
                      and s.event_digest = sha256(convert_to(e.event_id, 'UTF8')))
 order by e.stream_ordering
 limit $5
"""

LOCAL_MEMBERS: Final = """
-- room_events.local_members
select room_id, user_id, membership = 'join' as joined
  from public.local_current_membership where room_id = any($1::text[])
"""

MEMBERSHIP_CHANGES: Final = """
-- room_events.membership_changes: no event where the server left, nor the first time
select d.room_id, d.state_key as user_id, d.stream_id as stream_ordering,
       coalesce(was.membership = 'join', false) as joined_before,
       coalesce(became.membership = 'join', false) as joined_after
  from public.current_state_delta_stream d
  left join public.room_memberships was on was.event_id = d.prev_event_id
  left join public.room_memberships became on became.event_id = d.event_id
 where d.stream_id > $2 and d.room_id = any($1::text[]) and d.type = 'm.room.member'
 order by d.stream_id
"""

ALIASES: Final = """
-- room_events.aliases
select room_id, room_alias from public.room_aliases where room_id = any($1::text[])
"""

HOLDING: Final = """
-- room_events.holding: what speaks for and against Synapse's still having what is at most $2
select coalesce((select state = 'down' from public.application_services_state
                  where as_id = $1), false) as resting,
       exists (select from relayed r
                where r.received_at > clock_timestamp() - make_interval(secs => $3)
                  and r.appservice_id = $1) as sending,
       exists (select from (select event_id from public.events where stream_ordering > $2
                             order by stream_ordering limit 1000) e
                 join seen_event s on s.appservice_id = $1
                  and s.event_digest = sha256(convert_to(e.event_id, 'UTF8'))) as overtaken
"""

STORED: Final = """
-- room_events.stored: plain is what Synapse shows as it is stored, to whoever may see it
select j.json, redacted.so as redacted,
       not redacted.so and position('"soft_failed":true' in j.internal_metadata) = 0
       and e.type <> 'm.room.redaction' as plain
  from public.events e
  join public.event_json j using (event_id)
 cross join lateral (select exists (select from public.redactions r
                                     where r.redacts = e.event_id) as so) redacted
 where e.event_id = $1
"""

LOG_IS_LONG: Final = """
-- room_events.log_is_long
select count(*) > $1 from (select from capture_log limit $1 + 1) l
"""

IN_LOG: Final = """
-- room_events.in_log: what intake has not looked at yet; to look for ids in here takes far longer
select c.body from capture_log c where c.appservice_id = $1 and c.kind = 'transaction'
"""

APPEND: Final = """
-- room_events.append
insert into capture_log (kind, appservice_id, body) values ('transaction', $1, $2)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Where in a room is looked for events that never came.

    Attributes:
        before: id of an event of the room; they are earlier.
        behind: id of an earlier one, and they are later than it; None: from the cursor on.
    """

    before: str
    behind: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What speaks for and against Synapse's still holding events that did not come.

    Attributes:
        resting: it has put them into its database and will send them, but rests after a failure.
        sending: something came from it a moment ago.
        overtaken: something later came. But for failures Synapse sends in order, so it holds
            nothing earlier; what it does hold is a repeat when it comes.
    """

    resting: bool
    sending: bool
    overtaken: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """An event as Synapse stores it.

    Attributes:
        json: what goes over federation, and what Synapse noted in its `unsigned`.
        redacted: a redaction of it is there, allowed or not.
        plain: neither redacted nor soft-failed, and no redaction itself.
    """

    json: str = field(repr=False)
    redacted: bool
    plain: bool


async def readable(conn: Connection) -> bool:
    """Whether this role may read what is compared; a grant may be missing after an upgrade."""
    return bool(await conn.fetchval(READABLE))


async def position(conn: Connection) -> tuple[int, int]:
    """Up to where Synapse handed events to its own sender, and the last event that there is."""
    [(handed_over, latest)] = await conn.fetch(POSITION)
    return handed_over, latest


async def unseen(
    conn: Connection, appservice_id: str, *, after: int, to: int, limit: int
) -> list[RoomEvent]:
    """Events of a slice, whoever they interest, that never came for the appservice; ascending."""
    rows = await conn.fetch(UNSEEN, appservice_id, after, to, limit)
    return [RoomEvent(**row) for row in rows]


async def unseen_within(
    conn: Connection, appservice_id: str, spans: Sequence[Span], *, after: int, limit: int
) -> list[RoomEvent]:
    """Events above the cursor and `after` that never came, of these spans; ascending."""
    before, behind = [span.before for span in spans], [span.behind for span in spans]
    rows = await conn.fetch(UNSEEN_WITHIN, appservice_id, before, behind, after, limit, LOOK_BACK)
    return [RoomEvent(**row) for row in rows]


async def rooms(conn: Connection, room_ids: Sequence[str], *, after: int) -> dict[str, Room]:
    """Aliases and local members of rooms; memberships reach back to just behind `after`."""
    changes: defaultdict[tuple[str, str], list[MembershipChange]] = defaultdict(list)
    for row in await conn.fetch(MEMBERSHIP_CHANGES, room_ids, after):
        room_id, user_id, stream_ordering, before, became = row
        changes[room_id, user_id].append(
            MembershipChange(
                stream_ordering=stream_ordering, joined_before=before, joined_after=became
            )
        )
    current = {(r, u): joined for r, u, joined in await conn.fetch(LOCAL_MEMBERS, room_ids)}
    members: defaultdict[str, list[Member]] = defaultdict(list)
    for key in sorted(current.keys() | changes.keys()):
        members[key[0]].append(
            Member(user_id=key[1], joined=current.get(key, False), changes=changes.get(key, ()))
        )
    aliases: defaultdict[str, list[str]] = defaultdict(list)
    for room_id, alias in await conn.fetch(ALIASES, room_ids):
        aliases[room_id].append(alias)
    return {id_: Room(members=members[id_], aliases=aliases[id_]) for id_ in room_ids}


async def holding(
    conn: Connection, appservice_id: str, *, bound: int, quiet_seconds: float
) -> Holding:
    """What is known of Synapse's queue for events up to `bound`."""
    [row] = await conn.fetch(HOLDING, appservice_id, bound, quiet_seconds)
    return Holding(**row)


async def log_is_long(conn: Connection) -> bool:
    """Whether intake is far behind, so that what came can not be told from what did not."""
    return bool(await conn.fetchval(LOG_IS_LONG, LONGEST_LOG))


async def waiting_in_log(
    conn: Connection, appservice_id: str, event_ids: Sequence[str]
) -> set[str]:
    """Which of these came, and intake has yet to look at them; only in a DB transaction.

    Not for a long log, which is read through. A reply or a receipt names an event, too, and has
    come without it.
    """
    wanted, came = set(event_ids), set[str]()
    bodies = conn.cursor(IN_LOG, appservice_id, prefetch=BODIES_AT_ONCE)
    async for row in bodies:
        came |= wanted & _event_ids(row["body"])
        if came == wanted:
            break
    return came


def _event_ids(body: bytes) -> set[str]:
    """Those of a transaction's events; none where it is not what it should be."""
    try:
        return {event["event_id"] for event in orjson.loads(body)["events"]}
    except (ValueError, TypeError, KeyError):
        return set()


async def stored(conn: Connection, event_id: str) -> Stored | None:
    """An event as Synapse stores it; None: no such event."""
    row = await conn.fetchrow(STORED, event_id)
    return None if row is None else Stored(**row)


async def append(conn: Connection, appservice_id: str, events: Sequence[bytes]) -> None:
    """Append events as if the homeserver had sent them in one transaction; intake tells repeats.

    Only in a DB transaction that has written before: a gap in the log is settled by its id.
    """
    await conn.execute(APPEND, appservice_id, b'{"events":[' + b",".join(events) + b"]}")
