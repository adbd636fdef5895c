"""Polling alone, and what is in the log."""

from appservice_bridge.domain.capture import CaptureMode
from appservice_bridge.sources.drift_guard import DriftGuard
from appservice_bridge.sources.polling import Polling
from appservice_bridge.storage import synapse
from appservice_bridge.storage.database import Database
from tests.support.facts import Connection, make_synapse_tables

LOG = "select kind, user_id, device_id, stream_id, body from appservice_bridge.capture_log"


async def logged(pg: Connection) -> list[tuple[object, ...]]:
    return [tuple(row) for row in await pg.fetch(f"{LOG} order by seq")]


async def polling_alone(pg: Connection, db: Database) -> Polling:
    """Polling of Synapse's tables without a trigger; it has looked once."""
    await make_synapse_tables(pg)
    await pg.execute("insert into stream_positions values ('device_lists_stream', 'master', 0)")
    one = Polling(db, server_name="example.org")
    await DriftGuard(db, one, wanted=CaptureMode.POLLING).look()
    return one


async def attach_triggers(pg: Connection) -> None:
    await pg.execute("set search_path = appservice_bridge, public")
    await synapse.install(pg)
