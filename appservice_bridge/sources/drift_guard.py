"""Holds Synapse's tables and our triggers to what they were, and lets polling take over."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from appservice_bridge.domain.capture import CaptureMode
from appservice_bridge.domain.supported import NEWEST_SCHEMA_VERSION, OLDEST_SCHEMA_VERSION
from appservice_bridge.domain.synapse_tables import (
    COLUMNS,
    DEVICE_LIST_TABLES,
    INBOX_TABLES,
    KEY_CHANGE_TABLES,
    POLLED_COLUMNS,
    SIGNATURE_TABLES,
    TASK_TABLES,
)
from appservice_bridge.domain.waiting import set_within
from appservice_bridge.sources.polling import Polling
from appservice_bridge.storage import (
    capture_state,
    device_streams,
    drift,
    inbox,
    inbox_deletions,
    key_changes,
)
from appservice_bridge.storage.capture_state import CaptureState
from appservice_bridge.storage.database import (
    Connection,
    Database,
    DatabaseUnavailableError,
    SourceUnreadableError,
    reading_synapse,
)
from appservice_bridge.storage.drift import Problem

log = structlog.get_logger(__name__)

EVERY_SECONDS: Final = 30.0  # polling takes over within a minute, also when a look takes long
_FLOORS: Final[tuple[tuple[frozenset[str], Callable[[Connection], Awaitable[None]]], ...]] = (
    (INBOX_TABLES, inbox.set_floor),
    (DEVICE_LIST_TABLES | SIGNATURE_TABLES, device_streams.set_floor),
    (KEY_CHANGE_TABLES, key_changes.set_floor),
    (TASK_TABLES, inbox_deletions.set_floor),
)


class DriftGuard:
    """Looks every so often; what it finds is written down for all workers and for `status`.

    With a problem, polling takes over what can still be read; the triggers that are left go on,
    for nothing is doubled. Without one the triggers have it alone again, a look later: a writer
    that began with a faulty one has committed by then. Dying anywhere leaves the last state.

    Attributes:
        wanted: what the config asks for, triggers or polling.
    """

    def __init__(self, database: Database, polling: Polling, *, wanted: CaptureMode) -> None:
        self._database = database
        self._polling = polling
        self.wanted = wanted
        self._told: frozenset[str] = frozenset()
        self._told_mode: CaptureMode | None = None
        self._told_version: int | None = None

    async def run(self, stop: asyncio.Event, *, every_seconds: float = EVERY_SECONDS) -> None:
        """Look until `stop` is set; whoever starts it has looked once before."""
        while not await set_within(stop, every_seconds):
            try:
                await self.look()
            except DatabaseUnavailableError as error:
                log.warning("drift.rests", reason=error.reason)

    async def look(self) -> CaptureState:
        """Compare, change the mode where it is due, and write the state down.

        Raises:
            DatabaseUnavailableError: the state is as it was.
        """
        problems = await self._problems()
        unreadable = frozenset(p.unreadable for p in problems if p.unreadable is not None)
        await self._start_floors(unreadable)
        async with self._database.transaction() as conn:
            before = await capture_state.read(conn)
        mode = self._mode(problems, before)
        if mode is CaptureMode.TRIGGERS and before.mode is CaptureMode.POLLING:
            await self._polling.poll_once(wait=True)  # what came before goes ahead
        told = tuple(str(problem) for problem in problems)
        async with self._database.transaction() as conn:
            await capture_state.write(conn, mode, problems=told, unreadable=unreadable)
            state = await capture_state.read(conn)
        self._polling.use(state)
        self._tell(problems, mode)
        return state

    def _mode(self, problems: list[Problem], before: CaptureState) -> CaptureMode:
        just_mended = before.mode is CaptureMode.POLLING and before.problems
        if self.wanted is CaptureMode.TRIGGERS and not problems and not just_mended:
            return CaptureMode.TRIGGERS
        return CaptureMode.POLLING

    async def _problems(self) -> list[Problem]:
        try:
            async with self._database.transaction() as conn:
                with reading_synapse():
                    found = await drift.problems(conn, triggers=self.wanted is CaptureMode.TRIGGERS)
                    if not any(p.unreadable == "schema_version" for p in found):
                        self._tell_version(await drift.schema_version(conn))
                    return found
        except SourceUnreadableError as error:
            mend = "the owner of the homeserver's database must let the bridge read schema public"
            tables = [*COLUMNS, *POLLED_COLUMNS]
            return [Problem(what=error.reason, mend=mend, unreadable=t) for t in tables]

    async def _start_floors(self, unreadable: frozenset[str]) -> None:
        """Where nothing was ever compared with the log, start at the present."""
        for tables, set_floor in _FLOORS:
            if tables & unreadable:
                continue
            try:
                async with self._database.transaction() as conn:
                    await set_floor(conn)
            except SourceUnreadableError as error:
                log.warning("drift.floor", reason=error.reason)

    def _tell(self, problems: list[Problem], mode: CaptureMode) -> None:
        for problem in problems:
            if str(problem) not in self._told:
                log.error("drift.found", what=problem.what, mend=problem.mend)
        if self._told and not problems:
            log.info("drift.mended")
        self._told = frozenset(str(problem) for problem in problems)
        if mode is not self._told_mode:
            tell = log.info if mode is self.wanted else log.error
            tell("capture.mode", mode=mode.value, wanted=self.wanted.value)
            self._told_mode = mode

    def _tell_version(self, version: int | None) -> None:
        if version is None or version == self._told_version:
            return
        self._told_version = version
        if not OLDEST_SCHEMA_VERSION <= version <= NEWEST_SCHEMA_VERSION:
            tested = f"{OLDEST_SCHEMA_VERSION} to {NEWEST_SCHEMA_VERSION}"
            log.warning("drift.untested_synapse", schema_version=version, tested=tested)
