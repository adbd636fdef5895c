"""One worker: relay, intake and lanes on one database, wired together."""

import asyncio
import os
import socket
from collections.abc import Mapping
from functools import partial
from typing import Final
from uuid import uuid4

import aiohttp
import structlog
from aiohttp import web

from appservice_bridge.cli.context import transports
from appservice_bridge.cli.doors import Doors
from appservice_bridge.cli.synapse_side import cleaned, synapse_side
from appservice_bridge.config.loading import Loaded
from appservice_bridge.delivery.destination import Destination
from appservice_bridge.delivery.history import History
from appservice_bridge.delivery.lanes import Lanes
from appservice_bridge.delivery.purge import Retention, run_purge
from appservice_bridge.domain.capture import CaptureMode
from appservice_bridge.domain.owners import Owners
from appservice_bridge.domain.registration import Registration
from appservice_bridge.domain.reloading import Reloads
from appservice_bridge.domain.tokens import Tokens
from appservice_bridge.domain.transport import Transport
from appservice_bridge.domain.waiting import set_within
from appservice_bridge.http.admin import Admin
from appservice_bridge.http.admin_auth import AdminAuth, Operator, Role
from appservice_bridge.http.as_sync import AsSync
from appservice_bridge.http.as_tokens import AsTokens
from appservice_bridge.http.homeserver_keys import HomeserverKeys
from appservice_bridge.http.ingest import Ingest
from appservice_bridge.http.metrics import Measured, Metrics
from appservice_bridge.http.pass_through import PassThrough
from appservice_bridge.http.poll import Poll
from appservice_bridge.http.relay import Relay
from appservice_bridge.http.wake_homeserver import HomeserverWaker
from appservice_bridge.routing.announcing import announce, go_live
from appservice_bridge.routing.forgetting import run_forgetting
from appservice_bridge.routing.intake import Intake
from appservice_bridge.routing.seeding import OtherRegistrationsError
from appservice_bridge.sources.watchkeeper import Watchkeeper
from appservice_bridge.storage import capture_state, tokens
from appservice_bridge.storage.database import (
    Database,
    DatabaseUnavailableError,
    SourceUnreadableError,
)
from appservice_bridge.storage.identity import current_epoch
from appservice_bridge.storage.notifications import CAPTURE, OUTBOX, listen, notify
from appservice_bridge.storage.registrations import wait_for_gate
from appservice_bridge.storage.straight import Grown
from appservice_bridge.storage.stuck import end_stuck
from appservice_bridge.telemetry.deliveries import DeliveryMetrics

log = structlog.get_logger(__name__)

LONGEST_WAIT_SECONDS: Final = 3.0  # for leases; a door has to open even without a database


class Worker:
    """Everything a process does by one configuration; any number of them share a database.

    A reload is a second one in the same process: it begins as a worker with other registrations
    on the same database would, and the first is stopped.
    """

    def __init__(
        self,
        of: Loaded,
        owners: Owners,
        database: Database,
        session: aiohttp.ClientSession,
        reloads: Reloads | None = None,
        before: "Worker | None" = None,
    ) -> None:
        self.of = of
        self.serving = asyncio.Event()
        self.history: History = History() if before is None else before.history
        self._waiting: list[str] = []
        self._reloads = reloads or Reloads()
        self._owners = owners
        self._database = database
        self._session = session
        budget = of.config.budget.limits()
        registrations = {each.id: each for each in of.registrations}
        self._tokens = Tokens(registrations)
        self.deliveries: DeliveryMetrics = before.deliveries if before else DeliveryMetrics()
        self._intake = Intake(database, owners, self._appended, budget)
        leading_to = destinations(of, owners)
        self._lanes = Lanes(
            database,
            uuid4(),
            name=f"{socket.gethostname()}:{os.getpid()}",
            destinations=leading_to,
            session=session,
            observer=self.deliveries,
        )
        self._synapse = synapse_side(of, owners, database, session, self._lanes.look)
        self._watchkeeper = Watchkeeper(database, budget, reads_synapse=self._synapse is not None)
        self.waker: HomeserverWaker = HomeserverWaker(
            database,
            session,
            of.config.homeserver.url,
            owners.registrations,
            budget,
            waiting=None if before is None else before.waker.left_over(owners.registrations),
        )
        self._relay = self._taking_in(session, registrations, leading_to)

    def _taking_in(
        self,
        session: aiohttp.ClientSession,
        registrations: Mapping[str, Registration],
        leading_to: Mapping[str, Destination],
    ) -> web.Application:
        """What the homeserver asks, and the appservices that come to us."""
        homeserver, budget = self.of.config.homeserver, self.of.config.budget.limits()
        relay = Relay(
            self._database,
            registrations,
            self._owners.registrations,
            PassThrough(session),
            self.waker,
            self._lanes.changed.set,
            before=self._synapse,
            budget=budget,
            tokens=self._tokens,
        ).application()
        keys = HomeserverKeys(
            session, homeserver.url, homeserver.server_name, homeserver.verify_keys
        )
        Ingest(self._database, self._owners, registrations, keys, budget).add_to(relay)
        as_tokens = AsTokens(self._tokens, leading_to)
        AsSync(as_tokens, self._lanes.connected).add_to(relay)
        Poll(as_tokens, self._lanes.polls).add_to(relay)
        return relay

    def _with_metrics(self, admin: web.Application) -> web.Application:
        """What operators ask, and what Prometheus asks."""
        measured = Measured(
            database=self._database,
            deliveries=self.deliveries,
            held=self._lanes.held,
            may_send=self._lanes.leases_hold,
            transports=transports(self.of),
            limits=self.of.config.budget.limits(),
            keys_in_synapse=self._synapse is not None,
        )
        Metrics(measured, open_to_all=self.of.config.admin.metrics == "open").add_to(admin)
        return admin

    async def begin(self) -> None:
        """Make the registrations the ones that intake routes by, here and at other workers.

        Dying before the commit changes nothing; after it, facts wait in the log until a worker
        with these registrations runs.

        Raises:
            DatabaseUnavailableError: do it again; it may have happened.
        """
        async with self._database.transaction() as conn:
            await end_stuck(conn)
            epoch = await current_epoch(conn)
        self._waiting = await self._announce(epoch)
        await self._accept_tokens()

    async def _accept_tokens(self) -> None:
        """Begin with the time of grace of tokens that were replaced."""
        async with self._database.transaction() as conn:
            await wait_for_gate(conn)  # one worker at a time
            grace = self.of.config.token_grace_seconds
            await tokens.announce(conn, self.of.registrations, grace_seconds=grace)
            former = await tokens.former(conn)
        self._tokens.accept(former, now=asyncio.get_running_loop().time())

    async def run(self, doors: Doors, stop: asyncio.Event) -> None:
        """Serve until `stop` is set; then finish what is in flight. `begin` comes before.

        The doors lead here once this worker may send: whoever was behind them before goes on
        until then, and `serving` tells.

        Raises:
            AddressTakenError: relay or admin cannot listen.
        """
        admin = Admin(
            self._database,
            self._lanes.leases_hold,
            of=self.of,
            auth=AdminAuth(operators(self.of)),
            reloads=self._reloads,
            history=self.history,
            owners=self._owners,
            session=self._session,
        )
        try:
            async with asyncio.TaskGroup() as group:
                going_live = group.create_task(self._go_live(self._waiting), name="go-live")
                self._start(group, stop)
                group.create_task(admin.run(stop), name="admin")
                await set_within(self._lanes.may_send, LONGEST_WAIT_SECONDS)
                await doors.open_to(self._relay, self._with_metrics(admin.application()))
                self.serving.set()
                await stop.wait()
                going_live.cancel()
                self._intake.wake.set()  # so that it sees the stop now
        finally:
            await doors.leave(self._relay)

    def _start(self, group: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        """Begin with all that ends with `stop`."""
        wakes = {CAPTURE: self._intake.wake.set, OUTBOX: self._lanes.changed.set}
        tasks = {
            "listen": listen(self._database.dsn, wakes, stop),
            "intake": self._intake.run(stop),
            "lanes": self._lanes.run(stop),
            "purge": run_purge(self._database, stop, retention(self.of)),
            "forgetting": run_forgetting(self._database, stop),
            "waker": self.waker.run(stop),
            "watchkeeper": self._watchkeeper.run(stop),
            "history": self.history.run(self._database, stop),
        }
        for name, work in tasks.items():
            group.create_task(work, name=name)
        if self._synapse is not None:
            self._synapse.start(group, stop)

    async def _announce(self, epoch: str) -> list[str]:
        """Make the registrations known; returns those that are not live yet."""
        if self._synapse is None:
            async with self._database.transaction() as conn:
                none = CaptureMode.NONE
                await capture_state.write(conn, none, problems=(), unreadable=frozenset())
            return await announce(self._database, self._owners, epoch=epoch)
        await self._synapse.begin()
        waiting = await announce(
            self._database, self._owners, epoch=epoch, present=self._synapse.present
        )
        await self._synapse.look_at_capture()
        return waiting

    async def _go_live(self, appservice_ids: list[str]) -> None:
        tell_all = None
        if self._synapse is not None:
            tell_all = partial(self._synapse.tell_all, appservice_ids)
        while True:
            try:
                return await go_live(self._database, appservice_ids, tell_all=tell_all)
            except OtherRegistrationsError:
                return None  # who has those makes them live
            except SourceUnreadableError as error:
                log.error("worker.not_live", reason=error.reason)
                await asyncio.sleep(30)
            except DatabaseUnavailableError as error:
                log.warning("worker.rests", reason=error.reason)
                await asyncio.sleep(1)

    async def _appended(self, grown: Grown) -> None:
        """Wake the lanes here; tell the other workers if some are theirs."""
        if self._synapse is not None:
            self._synapse.came()
        if not self._lanes.appended(grown):
            async with self._database.transaction() as conn:
                await notify(conn, OUTBOX)


def operators(of: Loaded) -> list[Operator]:
    """Who may use the admin port."""
    return [
        Operator(name=each.name, role=Role[each.role.upper()], token=each.token)
        for each in of.config.admin.tokens
    ]


def retention(of: Loaded) -> Retention:
    """What stays of what was delivered."""
    settings = {one.id: of.config.settings(one).delivery for one in of.registrations}
    return Retention(
        cleaned=cleaned(of),
        keep_seconds={id_: each.keep_delivered_seconds for id_, each in settings.items()},
        budget=of.config.budget.limits(),
    )


def destinations(of: Loaded, owners: Owners) -> Mapping[str, Destination]:
    """Where the lanes lead, and how each appservice wants it."""
    found = {}
    for appservice_id, registration in owners.registrations.items():
        settings = of.config.settings(registration)
        found[appservice_id] = Destination(
            registration=registration,
            policy=settings.delivery,
            transport=Transport(settings.transport),
        )
    return found
