"""Batches that a homeserver handed over: stored once, and remembered with what was answered."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from appservice_bridge.domain.facts import Row
from appservice_bridge.storage import notifications
from appservice_bridge.storage.database import Connection

# It is written before any row is appended: that gives the DB transaction its id before the
# log's numbers are drawn, which is what a gap in the log is settled by.
REMEMBER: Final = """
-- ingest.remember: of two who bring the same batch at once the second waits here for the first
insert into ingest_batch (batch_id, digest, answer) values ($1, $2, $3)
on conflict (batch_id) do nothing
"""

AGE: Final = """
-- ingest.age: by the clock that also says when a batch is forgotten
select extract(epoch from clock_timestamp())::float8 - $1::bigint / 1000.0::float8
"""

RECALL: Final = """
-- ingest.recall
select digest, answer from ingest_batch where batch_id = $1
"""

APPEND: Final = """
-- ingest.append: the numbers of the log are drawn in the order given
insert into capture_log (kind, appservice_id, user_id, device_id, body)
select kind, appservice_id, user_id, device_id, body
  from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[]) with ordinality
       as r(kind, appservice_id, user_id, device_id, body, place)
 order by place
"""

FORGET: Final = """
-- ingest.forget
delete from ingest_batch b using (
    select batch_id from ingest_batch
     where received_at < now() - make_interval(days => $1) limit $2) old
 where b.batch_id = old.batch_id
"""


class Remembered(NamedTuple):
    """A batch that came before.

    Attributes:
        digest: of what was signed.
        answer: the body that it was answered with.
    """

    digest: bytes
    answer: bytes


async def remember(conn: Connection, batch_id: str, *, digest: bytes, answer: bytes) -> bool:
    """Put a batch down, before its rows are appended; False if one came under this id before."""
    return await conn.execute(REMEMBER, batch_id, digest, answer) == "INSERT 0 1"


async def age_seconds(conn: Connection, origin_server_ts: int) -> float:
    """How long ago that was, in ms since 1970; less than zero: it is still to come."""
    return float(await conn.fetchval(AGE, origin_server_ts))


async def recall(conn: Connection, batch_id: str) -> Remembered | None:
    """The batch that came under this id."""
    row = await conn.fetchrow(RECALL, batch_id)
    return None if row is None else Remembered(*row)


async def append(conn: Connection, rows: Sequence[Row]) -> None:
    """Append rows to the log in the order given; only after `remember`, in its DB transaction."""
    await conn.execute(
        APPEND,
        [row.kind for row in rows],
        [row.appservice_id for row in rows],
        [row.user_id for row in rows],
        [row.device_id for row in rows],
        [row.body for row in rows],
    )
    await notifications.wake_intake(conn)


async def forget(conn: Connection, *, days: int, batch: int) -> int:
    """Forget one lot of the batches that are older than so many days; returns how many."""
    return int((await conn.execute(FORGET, days, batch)).split()[1])
