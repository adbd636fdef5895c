"""Wake-ups from Postgres: a courtesy that saves time, never the only way to learn of work."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import asyncpg
import structlog

from appservice_bridge.domain.waiting import set_within
from appservice_bridge.storage.database import Connection, DatabaseUnavailableError, connect

log = structlog.get_logger(__name__)

CAPTURE: Final = "appservice_bridge_capture"
OUTBOX: Final = "appservice_bridge_outbox"
_CHECK_SECONDS: Final = 15.0

NOTIFY: Final = """
-- notifications.notify
select pg_notify($1, '') where pg_notification_queue_usage() < 0.5
"""

WAKE_INTAKE: Final = """
-- notifications.wake_intake: as the triggers do, once in five milliseconds
select setval('capture_woken', (extract(epoch from clock_timestamp()) * 1000)::bigint),
       pg_notify($1, '')
  from capture_woken w
 where abs(extract(epoch from clock_timestamp()) * 1000 - w.last_value) > 5
   and pg_notification_queue_usage() < 0.5
"""

CHECK: Final = """
-- notifications.check: any answer will do
select
"""


async def notify(conn: Connection, channel: str) -> None:
    """Wake who listens on a channel when this DB transaction commits; a courtesy, they look anyway.

    OUTBOX: an outbox grew whose lane another worker may hold.
    """
    await conn.execute(NOTIFY, channel)


async def wake_intake(conn: Connection) -> None:
    """The log grew, and intake may run when this DB transaction commits: the same courtesy.

    Only behind the append: whoever was woken by another, and looks again, then finds its numbers.
    """
    await conn.execute(WAKE_INTAKE, CAPTURE)


async def listen(dsn: str, wakes: Mapping[str, Callable[[], None]], stop: asyncio.Event) -> None:
    """Call the wake of a channel whenever it is notified, until `stop` is set.

    The connection is checked alive: one that died silently would only cost the courtesy, but
    for good. After each reconnect every wake is called once.
    """
    while not stop.is_set():
        try:
            await _listen_once(dsn, wakes, stop)
        except DatabaseUnavailableError as error:
            log.info("notifications.lost", reason=error.reason)
            await asyncio.sleep(1.0)


async def _listen_once(
    dsn: str, wakes: Mapping[str, Callable[[], None]], stop: asyncio.Event
) -> None:
    conn = await connect(dsn)
    try:
        for channel, wake in wakes.items():
            await conn.add_listener(channel, lambda *_, wake=wake: wake())
            wake()
        while not await set_within(stop, _CHECK_SECONDS):
            await conn.execute(CHECK, timeout=5)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise DatabaseUnavailableError(type(error).__name__) from None
    finally:
        conn.terminate()
