"""Follows who shares a room with whom, in Synapse's tables, and says whose devices to look at."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from appservice_bridge.domain.owners import Owners
from appservice_bridge.domain.waiting import set_within
from appservice_bridge.routing.following import Followed, follow_once
from appservice_bridge.routing.sweeping import Swept, sweep_once
from appservice_bridge.storage.database import (
    Database,
    DatabaseUnavailableError,
    SourceUnreadableError,
)

log = structlog.get_logger(__name__)

POLL_SECONDS: Final = 1.0  # the wake-up is a courtesy; the poll alone must do
UNREADABLE_PAUSE_SECONDS: Final = 30.0  # the drift guard says what is missing
SWEEP_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 0.05  # between two looks, however often it is woken


async def run_membership_follower(
    database: Database,
    owners: Owners,
    stop: asyncio.Event,
    *,
    wake: asyncio.Event,
    on_told: Callable[[Iterable[str]], object],
) -> None:
    """Follow the stream of memberships until `stop` is set; a database away is waited for.

    Every minute a page of what is kept is held against what holds.

    Dying anywhere leaves the cursor where it was, and the next pass follows the same again.
    """
    clock = asyncio.get_running_loop().time
    swept, sweep_at = Swept(), clock() + SWEEP_SECONDS
    while not stop.is_set():
        wake.clear()
        try:
            followed = await follow_once(database, owners)
            if followed.done and clock() >= sweep_at:
                swept, sweep_at = await sweep_once(database, owners, swept), clock() + SWEEP_SECONDS
                if swept.told:
                    on_told(swept.told)
        except DatabaseUnavailableError as error:
            log.warning("membership.rests", reason=error.reason)
            followed = Followed()
        except SourceUnreadableError as error:
            log.warning("membership.left_out", reason=error.reason)
            followed = Followed()
            await set_within(stop, UNREADABLE_PAUSE_SECONDS)
        if followed.told:
            on_told(followed.told)
        await set_within(stop, PAUSE_SECONDS)
        if followed.done:
            await set_within(wake, POLL_SECONDS)
