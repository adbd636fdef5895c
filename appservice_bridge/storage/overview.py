"""What an operator wants to see of every lane, in one query."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from appservice_bridge.domain.lane_state import BEHIND_SECONDS, LaneState
from appservice_bridge.domain.transport import Transport
from appservice_bridge.domain.waiting import in_turns
from appservice_bridge.storage.database import Connection

LANES: Final = """
-- overview.lanes: all of them, or one
select l.appservice_id,
       h.position - l.acked_to as waiting,
       greatest(0, h.bytes_in - l.bytes_out - kept.bytes) as waiting_bytes,
       kept.bytes as kept_bytes,
       (select count(*) from (select from device_list_update u
                               where u.appservice_id = l.appservice_id limit 10000) c)
     + (select count(*) from (select from device_key_state k
                               where k.appservice_id = l.appservice_id and k.waiting
                               limit 10000) c) as device_updates,
       case when h.position > l.acked_to then extract(epoch from clock_timestamp() - (
           select captured_at from outbox o
            where o.appservice_id = l.appservice_id and o.position > l.acked_to
            order by o.position limit 1))::float8 end as oldest_seconds,
       case when h.position > l.acked_to then extract(epoch from clock_timestamp() - (
           select n.captured_at
             from (select o.kind, o.captured_at from outbox o
                    where o.appservice_id = l.appservice_id and o.position > l.acked_to
                    order by o.position limit 200) n
            where n.kind = 'to_device' limit 1))::float8 end as oldest_to_device_seconds,
       greatest(0, extract(epoch from l.due_at)::float8
                 - extract(epoch from clock_timestamp())::float8) as rest_seconds,
       l.failed_attempts, l.failing_since, l.last_outcome, l.last_status, l.last_attempt_at,
       extract(epoch from clock_timestamp() - l.last_attempt_at)::float8 as attempted_seconds,
       l.last_ack_at,
       l.paused_at is not null as paused, l.paused_at,
       a.appservice_id is not null as registered, a.live_at is not null as live,
       case when w.alive_until
                 between clock_timestamp() and clock_timestamp() + interval '1 minute'
            then w.name end as worker,
       (select count(*) from (select from dead_letter d
                               where d.appservice_id = l.appservice_id limit 10000) c)
           as dead_letters,
       case when w.alive_until < clock_timestamp() then w.alive_until end as left_alone_at,
       (select coalesce(sum(items), 0)::bigint from ledger g
         where g.appservice_id = l.appservice_id and g.outcome = 'delivered') as delivered
  from lane l
  join outbox_head h using (appservice_id)
  left join appservice a using (appservice_id)
  left join worker w on w.worker_id = l.worker_id
 cross join lateral (select coalesce(sum(k.payload_bytes), 0)::bigint as bytes from kept k
                      where k.appservice_id = l.appservice_id) kept
 where l.appservice_id = coalesce($1, l.appservice_id)
 order by l.appservice_id
"""

WORKERS: Final = """
-- overview.workers: those that are alive, and those that were within the last hour
select w.worker_id, w.name, w.started_at, w.alive_until,
       w.alive_until between clock_timestamp() and clock_timestamp() + interval '1 minute' as alive,
       coalesce(held.lanes, 0) as lanes
  from worker w
  left join (select worker_id, count(*) as lanes from lane group by worker_id) held
       using (worker_id)
 where w.alive_until > clock_timestamp() - interval '1 hour'
 order by w.started_at, w.worker_id limit 200
"""

WAITING_KINDS: Final = """
-- overview.waiting_kinds: of the next $2
select n.kind, count(*) as items
  from (select o.kind from outbox o join lane l using (appservice_id)
         where o.appservice_id = $1 and o.position > l.acked_to
         order by o.position limit $2) n
 group by n.kind
"""

CAPTURED: Final = """
-- overview.captured
select count(*) from (select from capture_log limit 100000) c
"""


POLL_GONE_SECONDS: Final = 120.0  # twice as long as an appservice may wait before it asks again


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneView:
    """One lane as it is now.

    Attributes:
        waiting: items routed and not acknowledged.
        waiting_bytes: of their payload, as far as it is stored here.
        kept_bytes: of what was acknowledged and stays for a replay.
        device_updates: users and devices that the appservice must hear of, of each 10,000 at most.
        oldest_seconds: age of the oldest of them, since its capture; None if nothing waits.
        oldest_to_device_seconds: of the first to-device message among the next 200 items.
        rest_seconds: until the next attempt; infinite for a lane that was halted.
        paused: by an operator, at `paused_at`.
        attempted_seconds: since the last attempt, or since the appservice last asked.
        registered: its registration is in force.
        live: and everything of its users is captured.
        worker: who serves it; None if no worker does.
        dead_letters: counted up to 10,000.
        left_alone_at: when the lease of who served it last ended, as far as that is known.
        transport: as the config at hand says; None if it does not know the appservice.
    """

    appservice_id: str
    waiting: int
    device_updates: int
    waiting_bytes: int
    kept_bytes: int
    oldest_seconds: float | None
    oldest_to_device_seconds: float | None
    rest_seconds: float
    failed_attempts: int
    failing_since: datetime | None
    last_outcome: str | None
    last_status: int | None
    last_attempt_at: datetime | None
    attempted_seconds: float | None
    last_ack_at: datetime | None
    paused: bool
    paused_at: datetime | None
    registered: bool
    live: bool
    worker: str | None
    left_alone_at: datetime | None
    dead_letters: int
    delivered: int
    transport: Transport | None = None

    @property
    def state(self) -> LaneState:
        """One word for it."""
        if not self.registered:
            return LaneState.UNREGISTERED
        if not self.live:
            return LaneState.GOING_LIVE
        if self._is_away():
            return LaneState.DISCONNECTED
        if self.worker is None:
            return LaneState.UNSERVED
        if self.rest_seconds == float("inf"):
            return LaneState.HALTED
        if self.paused:
            return LaneState.PAUSED
        if self.failed_attempts:
            return LaneState.FAILING
        return self._at_work()

    def _at_work(self) -> LaneState:
        if (self.oldest_seconds or 0.0) >= BEHIND_SECONDS:
            return LaneState.BEHIND
        waits = self.waiting or self.device_updates
        return LaneState.DELIVERING if waits else LaneState.IDLE

    def _is_away(self) -> bool:
        """Whether it is one who should come to us, and is not here."""
        if self.transport is Transport.POLL:
            since = self.attempted_seconds
            return self.worker is None or since is None or since > POLL_GONE_SECONDS
        return self.worker is None and self.transport is Transport.WEBSOCKET


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """One worker as it is now.

    Attributes:
        alive_until: it says so again before, as long as it is alive.
        lanes: that it holds, or held when it died.
    """

    worker_id: UUID
    name: str
    started_at: datetime
    alive_until: datetime
    alive: bool
    lanes: int


async def lanes(
    conn: Connection,
    transports: Mapping[str, Transport] | None = None,
    *,
    only: str | None = None,
) -> list[LaneView]:
    """Every lane there is, by appservice; or the one of this appservice, if it has one."""
    known = transports or {}
    rows = await conn.fetch(LANES, only)
    return [
        LaneView(**row, transport=known.get(row["appservice_id"])) async for row in in_turns(rows)
    ]


async def workers(conn: Connection) -> list[WorkerView]:
    """The workers, the oldest first."""
    return [WorkerView(**row) for row in await conn.fetch(WORKERS)]


async def waiting_kinds(conn: Connection, appservice_id: str, *, most: int) -> dict[str, int]:
    """What an appservice has not acknowledged, by kind, of the next so many items."""
    rows = await conn.fetch(WAITING_KINDS, appservice_id, most)
    return {row["kind"]: row["items"] for row in rows}


async def captured(conn: Connection) -> int:
    """Facts that are captured and not yet routed; counted up to 100,000."""
    return int(await conn.fetchval(CAPTURED))
