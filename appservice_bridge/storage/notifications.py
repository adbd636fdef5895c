"""Wake-ups from Postgres: a courtesy that saves time, never the only way to learn of work."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import asyncpg
import structlog

from appservice_bridge.storage.database import DatabaseUnavailableError, connect

log = structlog.get_logger(__name__)

CAPTURE: Final = "appservice_bridge_capture"
OUTBOX: Final = "appservice_bridge_outbox"
_CHECK_SECONDS: Final = 15.0


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
        while not stop.is_set():
            try:
                async with asyncio.timeout(_CHECK_SECONDS):
                    await stop.wait()
            except TimeoutError:
                await conn.execute("select", timeout=5)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise DatabaseUnavailableError(type(error).__name__) from None
    finally:
        conn.terminate()
