"""Workers and the lanes they hold: timed by Postgres' clock, fenced by a token per claim.

Who says to be alive for longer than a minute said so before that clock was set back: its lanes are
free, and nothing else is, for it may be alive.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.sharing import Standing
from appservice_bridge.storage.database import Connection

RENEW: Final = """
-- leases.renew: one write keeps every lane of this worker
insert into worker (worker_id, name, alive_until)
values ($1, $2, clock_timestamp() + make_interval(secs => $3))
on conflict (worker_id) do update set alive_until = excluded.alive_until
"""

CLAIM: Final = """
-- leases.claim: lanes nobody holds, or whose worker no longer says that it is alive, or that are
-- this worker's and it does not know, for the answer to the claim's commit was lost; $3 at most
update lane l
   set worker_id = $1, lease_token = l.lease_token + 1
  from (select appservice_id from lane
         where appservice_id = any($2::text[])
           and (worker_id is null or worker_id = $1 or not exists (
                select from worker w
                 where w.worker_id = lane.worker_id
                   and w.alive_until between clock_timestamp()
                                         and clock_timestamp() + interval '1 minute'))
         order by appservice_id limit $3
           for update) free
 where l.appservice_id = free.appservice_id
returning l.appservice_id, l.lease_token
"""

STANDING: Final = """
-- leases.standing: who is alive, by when they began, and which of these lanes are theirs
select w.worker_id,
       array_agg(l.appservice_id) filter (where l.appservice_id is not null) as held
  from worker w
  left join lane l on l.worker_id = w.worker_id and l.appservice_id = any($1::text[])
 where w.alive_until between clock_timestamp() and clock_timestamp() + interval '1 minute'
 group by w.worker_id, w.started_at order by w.started_at, w.worker_id
"""

GIVE_UP: Final = """
-- leases.give_up: no lane that was claimed again since
update lane l set worker_id = null
  from unnest($1::text[], $2::bigint[]) as g(appservice_id, lease_token)
 where l.appservice_id = g.appservice_id and l.lease_token = g.lease_token
"""

RELEASE: Final = """
-- leases.release
with released as (update lane set worker_id = null where worker_id = $1)
delete from worker where worker_id = $1
"""

FORGET_DEAD: Final = """
-- leases.forget_dead
delete from worker where alive_until < now() - interval '1 hour'
"""

LIVE_WORKERS: Final = """
-- leases.live_workers
select name from appservice_bridge.worker where alive_until > clock_timestamp() order by name
"""

LANES_WITH_WORK: Final = """
-- leases.lanes_with_work: due now, and something is waiting or in flight
select l.appservice_id
  from lane l join outbox_head h using (appservice_id)
 where l.worker_id = $1 and l.due_at <= clock_timestamp() and l.paused_at is null
   and (h.position > l.acked_to
        or exists (select from device_list_update u
                    where u.appservice_id = l.appservice_id and u.sealed_in is null)
        or exists (select from device_key_state k
                    where k.appservice_id = l.appservice_id and k.waiting)
        or exists (select from sealed s where s.appservice_id = l.appservice_id))
"""


class LeaseLostError(BridgeError):
    """Another worker took the lane over; the late writer must stop, not retry."""

    def __init__(self, appservice_id: str) -> None:
        super().__init__(f"lease lost on lane {appservice_id}")
        self.appservice_id = appservice_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to one lane, until another worker claims it.

    Attributes:
        token: rises with every claim; each write to the lane names it.
    """

    appservice_id: str
    token: int


async def renew(conn: Connection, worker_id: UUID, *, name: str, lease_seconds: float) -> None:
    """Say that this worker is alive, for so long."""
    await conn.execute(RENEW, worker_id, name, lease_seconds)


async def standing(conn: Connection, appservice_ids: Iterable[str]) -> Standing:
    """Who is alive, and which of these lanes they hold."""
    lanes = frozenset(appservice_ids)
    rows = await conn.fetch(STANDING, sorted(lanes))
    held = {row["worker_id"]: frozenset(row["held"] or ()) for row in rows}
    return Standing(lanes=lanes, held=held)


async def claim(
    conn: Connection, worker_id: UUID, appservice_ids: Sequence[str], *, most: int
) -> list[Lease]:
    """Take so many of these lanes, of those that are free."""
    rows = await conn.fetch(CLAIM, worker_id, appservice_ids, most)
    return [Lease(appservice_id=row["appservice_id"], token=row["lease_token"]) for row in rows]


async def give_up(conn: Connection, leases: Sequence[Lease]) -> None:
    """Hand these lanes back; nothing of them may be in flight. A lease that is lost is lost."""
    await conn.execute(
        GIVE_UP, [lease.appservice_id for lease in leases], [lease.token for lease in leases]
    )


async def release(conn: Connection, worker_id: UUID) -> None:
    """Hand all lanes of this worker back, so that others need not wait for its time to run out."""
    await conn.execute(RELEASE, worker_id)


async def forget_dead(conn: Connection) -> None:
    """Forget workers that have not been alive for an hour."""
    await conn.execute(FORGET_DEAD)


async def live_workers(conn: Connection) -> list[str]:
    """The names of the workers that say that they are alive."""
    return [row["name"] for row in await conn.fetch(LIVE_WORKERS)]


async def lanes_with_work(conn: Connection, worker_id: UUID) -> list[str]:
    """The lanes of this worker that should be sending, by the clock and the backlog."""
    return [row["appservice_id"] for row in await conn.fetch(LANES_WITH_WORK, worker_id)]
