"""One worker after the other in one process: each stands for one reading of the configuration."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp
import structlog

from appservice_bridge.cli.context import owners
from appservice_bridge.cli.doors import Doors
from appservice_bridge.cli.service_manager import ServiceManager
from appservice_bridge.cli.synapse_side import reads_synapse
from appservice_bridge.cli.unreloadable import needing_restart
from appservice_bridge.cli.worker import Worker
from appservice_bridge.config.faults import ConfigError
from appservice_bridge.config.loading import Loaded, load
from appservice_bridge.config.watching import FileWatch
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.reloading import (
    Reloaded,
    ReloadOutcome,
    ReloadRefused,
    Reloads,
    ReloadWaits,
    Unchanged,
)
from appservice_bridge.domain.waiting import set_within
from appservice_bridge.storage import lanes, synapse
from appservice_bridge.storage.database import Database, DatabaseUnavailableError
from appservice_bridge.storage.notifications import OUTBOX, notify

log = structlog.get_logger(__name__)

START_SECONDS: Final = 20.0  # more than an idle DB transaction of another worker may last
STOP_SECONDS: Final = 25.0  # after SIGTERM; a database that does not answer by then is left
LOOK_SECONDS: Final = 2.0
LOOK_PAUSE: Final = 200  # times as long as a look takes, nobody looks
LOOK_AGAIN_SECONDS: Final = 20.0  # after a refusal: what mends it may be a file nobody watches
RETRY_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    worker: Worker
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None]


class Generations:
    """Runs a worker, and replaces it by another when the configuration has changed.

    A reload is what a second worker with other registrations would be: it announces them, which
    ends the first one's routing; it opens the doors to itself; then the first is stopped, and each
    of its lanes moves when it has ended. Dying anywhere in it is dying with two workers: the next
    start reads the files again, and what was committed is there.
    """

    def __init__(
        self,
        config: Path,
        of: Loaded,
        database: Database,
        session: aiohttp.ClientSession,
        service: ServiceManager,
    ) -> None:
        self.reloads = Reloads()
        self._config = config
        self._of = of
        self._database = database
        self._session = session
        self._service = service
        self._doors = Doors(of.config)
        self._running: list[_Running] = []
        self._told: ReloadOutcome | None = None
        self._begun_in_vain = False

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set; then finish what is in flight.

        Raises:
            AddressTakenError: relay or admin cannot listen.
            CertificateError: what the ports should show does not load.
        """
        async with asyncio.TaskGroup() as group:
            await self._begin(group, stop)
            listen_on = self._of.config.listen
            log.info("worker.started", relay=str(listen_on.relay), admin=str(listen_on.admin))
            self._service.ready(self._status())
            reloading = group.create_task(self._reload_when_asked(group), name="reloading")
            watching = group.create_task(self._watch(stop), name="watching")
            await stop.wait()
            self._service.stopping()
            reloading.cancel()
            watching.cancel()
            for one in self._running:
                one.stop.set()
            limit = asyncio.get_running_loop().call_later(STOP_SECONDS, self._database.abandon)
        limit.cancel()
        log.info("worker.stopped")

    async def _begin(self, group: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        """A frozen worker may hold a row that a start needs, until its session is cut."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + START_SECONDS
        while True:
            try:
                return await self._replace(group, self._of)
            except DatabaseUnavailableError as error:
                if stop.is_set() or clock() > deadline:
                    raise
                log.warning("worker.begins_again", reason=error.reason)
                await asyncio.sleep(RETRY_SECONDS)

    def ask(self) -> None:
        """An operator wants a reload: what it comes to is said, even if it was said before."""
        self._told = None
        self.reloads.ask()

    async def _watch(self, stop: asyncio.Event) -> None:
        """Ask for a reload when files have changed; after a refusal, now and then."""
        watch = FileWatch(self._config)
        clock = asyncio.get_running_loop().time
        asked_at = clock()
        pause = LOOK_SECONDS
        while not await set_within(stop, pause):
            patterns, began = self._of.config.registrations, clock()
            changed = await asyncio.to_thread(watch.changed, patterns, list(_others(self._of)))
            pause = max(LOOK_SECONDS, LOOK_PAUSE * (clock() - began))  # with thousands of files
            refused = isinstance(self.reloads.last, ReloadRefused)
            if changed or (refused and clock() - asked_at > LOOK_AGAIN_SECONDS):
                asked_at = clock()
                self.reloads.ask()

    async def _reload_when_asked(self, group: asyncio.TaskGroup) -> None:
        while True:
            await self.reloads.begin()
            self._service.reloading()
            outcome = await self._reload(group)
            if self._begun_in_vain and isinstance(outcome, ReloadRefused):
                await self._begin_as_before(group)
            self._tell(outcome)
            self._service.reloaded(outcome, self._status())
            self.reloads.finish(outcome)
            if isinstance(outcome, ReloadWaits):
                await asyncio.sleep(RETRY_SECONDS)
                self.reloads.ask()

    async def _reload(self, group: asyncio.TaskGroup) -> ReloadOutcome:
        try:
            of = await self._read()
            if _same(self._of, of) and not self._begun_in_vain:
                return Unchanged()
            await self._replace(group, of)
        except ConfigError as error:
            return ReloadRefused(reasons=tuple(map(str, error.faults)))
        except DatabaseUnavailableError as error:
            return ReloadWaits(reason=error.reason)
        except BridgeError as error:
            return ReloadRefused(reasons=(str(error),))
        return Reloaded()

    async def _begin_as_before(self, group: asyncio.TaskGroup) -> None:
        try:
            await self._replace(group, self._of)
        except BridgeError as error:  # the next look at what was refused tries it again
            log.error("config.not_restored", reason=str(error))

    async def _read(self) -> Loaded:
        """A sound configuration that this process can change to.

        Raises:
            ConfigError, CertificateError: what is in force stays.
            DatabaseUnavailableError: it is not known yet.
        """
        of = await asyncio.to_thread(load, self._config)
        faults = needing_restart(self._config, self._of, of)
        if faults:
            raise ConfigError(faults, of.warnings)
        self._doors.read_certificate_again()
        if reads_synapse(of) and not reads_synapse(self._of):
            async with self._database.statement() as conn:
                await synapse.require_homeserver(conn, of.config.homeserver.server_name)
        return of

    async def _replace(self, group: asyncio.TaskGroup, of: Loaded) -> None:
        """Start a worker by `of`, and when it serves stop the one before it.

        If it cannot begin, the one before it goes on; but its registrations may be the ones no
        longer, and one like it has to begin to make them so again.
        """
        before = self._running[-1].worker if self._running else None
        worker = Worker(of, owners(of), self._database, self._session, self.reloads, before)
        try:
            await worker.begin()
        except BridgeError:
            self._begun_in_vain = True
            raise
        self._begun_in_vain = False
        stop = asyncio.Event()
        task = group.create_task(worker.run(self._doors, stop), name="worker")
        older = [one for one in self._running if not one.task.done()]
        self._running = [*older, _Running(worker=worker, stop=stop, task=task)]
        await worker.serving.wait()
        for one in older:
            one.stop.set()
        changed, self._of = redirected(self._of, of), of
        await self._end_rests(changed)

    async def _end_rests(self, appservice_ids: list[str]) -> None:
        """What rests because of a url or a token that is no longer in force is due now."""
        try:
            async with self._database.transaction() as conn:
                for appservice_id in appservice_ids:
                    await lanes.end_rest(conn, appservice_id)
                await notify(conn, OUTBOX)
        except DatabaseUnavailableError as error:
            log.warning("reload.rests_not_ended", reason=error.reason)

    def _status(self) -> str:
        count = len(self._of.registrations)
        return f"serves {count} registration{'' if count == 1 else 's'}"

    def _tell(self, outcome: ReloadOutcome) -> None:
        """Log it once, however often the same is found."""
        if outcome == self._told:
            return
        self._told = outcome
        match outcome:
            case Reloaded():
                self._told = None
                log.info("config.reloaded", registrations=len(self._of.registrations))
                for warning in self._of.warnings:
                    log.warning("config.doubtful", place=warning.place, reason=warning.reason)
            case Unchanged():
                log.info("config.unchanged")
            case ReloadRefused(reasons=reasons):
                for reason in reasons:
                    log.error("config.refused", reason=reason)
            case ReloadWaits(reason=reason):
                log.warning("config.waits", reason=reason)


def _same(one: Loaded, other: Loaded) -> bool:
    return (one.config, one.registrations) == (other.config, other.registrations)


def redirected(before: Loaded, after: Loaded) -> list[str]:
    """The appservices that are reached otherwise: elsewhere, with another token or patience."""
    old, new = _reached(before), _reached(after)
    return sorted(id_ for id_ in old.keys() & new.keys() if old[id_] != new[id_])


def _reached(of: Loaded) -> dict[str, object]:
    return {one.id: (one.url, one.hs_token, of.config.settings(one)) for one in of.registrations}


def _others(of: Loaded) -> Iterator[Path]:
    """Files beside config and registrations whose change asks for a reload."""
    for section in (of.config.listen, of.config.admin):
        for path in (section.tls_cert_file, section.tls_key_file):
            if path is not None:
                yield path
