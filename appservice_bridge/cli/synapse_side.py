"""What a worker does beside Synapse's own tables: watch the capture, follow rooms, find, clean."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager

import aiohttp
import structlog

from appservice_bridge.config.loading import Loaded
from appservice_bridge.domain.capture import CaptureMode
from appservice_bridge.domain.owners import Owners
from appservice_bridge.routing.following import begin_following
from appservice_bridge.routing.seeding import OtherRegistrationsError, Seeding
from appservice_bridge.sources.drift_guard import DriftGuard
from appservice_bridge.sources.event_recovery import EventRecovery
from appservice_bridge.sources.forgotten_events import ForgottenEvents
from appservice_bridge.sources.inbox_cleaner import InboxCleaner
from appservice_bridge.sources.membership_follower import run_membership_follower
from appservice_bridge.sources.polling import Polling
from appservice_bridge.sources.reconciler import run_reconciler
from appservice_bridge.sources.room_order import RoomOrder
from appservice_bridge.storage import inbox
from appservice_bridge.storage.database import (
    Connection,
    Database,
    SourceUnreadableError,
    reading_synapse,
)

log = structlog.get_logger(__name__)


class SynapseSide:
    """All readers of Synapse's tables; only where the config says that they are read.

    A start goes in this order: `begin`, so that whoever was never followed is looked for again;
    then registrations are announced, with `present`; `look_at_capture`, before anything is taken
    in; `start`; and when no older DB transaction is open any more, `tell_all`.
    """

    def __init__(
        self,
        of: Loaded,
        owners: Owners,
        database: Database,
        session: aiohttp.ClientSession,
        on_told: Callable[[Iterable[str]], object],
    ) -> None:
        homeserver = of.config.homeserver
        self._owners = owners
        self._database = database
        self._server_name = homeserver.server_name
        self._on_told = on_told
        self._came = asyncio.Event()
        self._polling = Polling(database, server_name=homeserver.server_name)
        self._guard = DriftGuard(database, self._polling, wanted=CaptureMode(homeserver.capture))
        recovery = EventRecovery(
            database,
            owners,
            session,
            homeserver.url,
            before=self._polling.catch_up,
            budget=of.config.budget.limits(),
        )
        self._forgotten = ForgottenEvents(database, owners, recovery)
        self._room_order = RoomOrder(database, recovery)
        self._cleaner = InboxCleaner(database, owners, cleaned(of))

    async def begin(self) -> None:
        """What must be done before registrations are announced."""
        try:
            await begin_following(self._database)
        except SourceUnreadableError as error:
            log.error("memberships.not_followed", reason=error.reason)

    async def present(self, conn: Connection) -> int | None:
        """Up to where the homeserver's inbox is written; None where that cannot be read now."""
        try:
            with reading_synapse():
                async with conn.transaction():
                    return await inbox.present(conn)
        except SourceUnreadableError as error:
            log.error("inbox.not_read", reason=error.reason)
            return None

    async def look_at_capture(self) -> None:
        """Know how facts are captured before the first room event is taken in."""
        await self._guard.look()

    async def tell_all(self, appservice_ids: list[str]) -> None:
        """Let new appservices hear of all devices there are."""
        try:
            await Seeding(self._database, self._owners, appservice_ids).run()
        except OtherRegistrationsError:
            log.warning("worker.other_registrations", mend="give all workers the same")
            raise

    def came(self) -> None:
        """Something was routed; it may be the event of a change of membership."""
        self._came.set()

    async def before_transaction(self, conn: Connection) -> None:
        """What has to be in the log before a transaction of the homeserver.

        Raises:
            SourceUnreadableError: it cannot be read now.
        """
        await self._polling.catch_up(conn)

    def in_room_order(self, appservice_id: str, body: bytes) -> AbstractAsyncContextManager[None]:
        """Put what its rooms lack into the log; the block then stores the transaction itself."""
        return self._room_order.kept(appservice_id, body)

    def start(self, group: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        """Begin with all of it; each ends with `stop`."""
        tasks = {
            "reconciler": run_reconciler(self._database, stop, server_name=self._server_name),
            "polling": self._polling.run(stop),
            "drift-guard": self._guard.run(stop),
            "inbox-cleaner": self._cleaner.run(stop),
            "forgotten-events": self._forgotten.run(stop),
            "memberships": run_membership_follower(
                self._database, self._owners, stop, wake=self._came, on_told=self._on_told
            ),
        }
        for name, work in tasks.items():
            group.create_task(work, name=name)


def synapse_side(
    of: Loaded,
    owners: Owners,
    database: Database,
    session: aiohttp.ClientSession,
    on_told: Callable[[Iterable[str]], object],
) -> SynapseSide | None:
    """All of it; None where no homeserver's tables are read."""
    if not reads_synapse(of):
        return None
    return SynapseSide(of, owners, database, session, on_told)


def reads_synapse(of: Loaded) -> bool:
    """Whether the homeserver's tables are there to read."""
    return of.config.homeserver.capture != "none"


def cleaned(of: Loaded) -> frozenset[str]:
    """The appservices whose delivered messages are to leave the homeserver's inbox."""
    if not reads_synapse(of):
        return frozenset()
    return frozenset(one.id for one in of.registrations if of.config.settings(one).delete_delivered)
