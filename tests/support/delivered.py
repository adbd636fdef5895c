"""Messages delivered and acknowledged, and who cleans up behind them."""

import asyncio

import pytest

from appservice_bridge.delivery.purge import Retention, purge_once
from appservice_bridge.routing.intake import Intake
from appservice_bridge.sources.inbox_cleaner import InboxCleaner
from appservice_bridge.storage.database import Database
from tests.support.facts import Connection
from tests.support.intake import registered


async def add_device(pg: Connection, user: str, device: str = "DEV") -> None:
    await pg.execute(
        "insert into public.devices (user_id, device_id) values ($1, $2)", user, device
    )


async def delivered(pg: Connection, db: Database, intake: Intake, *cleaned: str) -> None:
    """All that waits is routed, acknowledged and purged."""
    while not (await intake.consume_once()).done:
        pass
    await pg.execute(
        "update appservice_bridge.lane l set acked_to = h.position"
        " from appservice_bridge.outbox_head h where h.appservice_id = l.appservice_id"
    )
    await purge_once(db, asyncio.Event(), Retention(cleaned=cleaned))


@pytest.fixture
def cleaner(db: Database) -> InboxCleaner:
    """For `bot` that owns @b_* alone, without the grace."""
    return InboxCleaner(db, registered(("bot", "@b_.*")), {"bot"}, grace_seconds=0)
