"""Reads what no trigger captures: twice a second, and before each room event is stored."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeAlias

import structlog

from appservice_bridge.domain.capture import CaptureMode
from appservice_bridge.domain.synapse_tables import (
    DEVICE_LIST_TABLES,
    INBOX_TABLES,
    KEY_CHANGE_TABLES,
    SIGNATURE_TABLES,
    TASK_TABLES,
)
from appservice_bridge.domain.waiting import set_within
from appservice_bridge.storage import (
    capture_state,
    device_streams,
    inbox,
    inbox_deletions,
    key_changes,
    notifications,
)
from appservice_bridge.storage.capture_state import CaptureState
from appservice_bridge.storage.database import (
    Connection,
    Database,
    DatabaseUnavailableError,
    SourceUnreadableError,
)
from appservice_bridge.storage.inbox_deletions import Task

log = structlog.get_logger(__name__)

EVERY_SECONDS: Final = 0.5
BATCH: Final = 1000
MOST_BEFORE_AN_EVENT: Final = 5000  # what a relayed transaction may have to wait for
LONGEST_WRITE_SECONDS: Final = 60.0  # what commits later, the reconciler finds

Step: TypeAlias = Callable[[Connection], Awaitable[int | None]]


class Polling:
    """Compares Synapse's tables with the log while it is on; at rest it only asks whether it is.

    It appends what is neither in the log nor taken, so it may run beside triggers: whoever sees
    a fact first appends it. Dying anywhere leaves log and positions as they were.
    """

    def __init__(self, database: Database, *, server_name: str) -> None:
        self._database = database
        self._server_name = server_name
        self._on = False
        self._unreadable: frozenset[str] = frozenset()
        self._reads_tasks = False
        self._told: str | None = None
        self._marks: deque[tuple[float, int]] = deque()

    def use(self, state: CaptureState) -> None:
        """Be on or off from now on, as the last look at the tables says."""
        self._on = state.mode is CaptureMode.POLLING
        self._unreadable = state.unreadable

    async def run(self, stop: asyncio.Event, *, every_seconds: float = EVERY_SECONDS) -> None:
        """Poll until `stop` is set; a look of another worker's counts as one's own."""
        while not stop.is_set():
            try:
                await self.run_once()
            except DatabaseUnavailableError as error:
                log.warning("polling.rests", reason=error.reason)
            await set_within(stop, every_seconds)

    async def run_once(self) -> None:
        """Poll if the last look of any worker says so.

        Raises:
            DatabaseUnavailableError: what was appended before stays.
        """
        async with self._database.transaction() as conn:
            self.use(await capture_state.read(conn))
        if self._on:
            await self.poll_once()

    async def poll_once(self, *, wait: bool = False) -> None:
        """Append all that is there; messages first, so that no deletion overtakes them.

        But Synapse's tasks are read before: see `inbox_deletions`.

        Another worker that reads messages is left to it, or waited for and followed.

        Raises:
            DatabaseUnavailableError: what was appended before stays.
        """
        if not self._unreadable & INBOX_TABLES:
            tasks = await self._fresh_tasks()
            await self._drain(partial(self._messages, limit=BATCH, wait=wait, tasks=tasks))
        if not self._unreadable >= DEVICE_LIST_TABLES | SIGNATURE_TABLES:
            await self._drain(self._device_streams)
        if not self._unreadable & KEY_CHANGE_TABLES:
            await self._drain(self._key_changes)

    async def catch_up(self, conn: Connection) -> None:
        """Append every message that was committed before now, in the caller's DB transaction.

        The homeserver committed a room key before it sent the event that the key opens. So what
        the caller appends next comes after it in the log. A poll that is at work is waited for.

        Raises:
            SourceUnreadableError: the inbox is not as it was; do without.
            DatabaseUnavailableError: there is more than one DB transaction should take.
        """
        if not self._on or self._unreadable & INBOX_TABLES:
            return
        tasks: tuple[Task, ...] = ()
        if self._reads_tasks:
            tasks = await inbox_deletions.fresh(conn, limit=BATCH)
        appended = await self._messages(conn, limit=MOST_BEFORE_AN_EVENT, wait=True, tasks=tasks)
        if appended:
            await notifications.wake_intake(conn)
        if appended == MOST_BEFORE_AN_EVENT:
            raise DatabaseUnavailableError("polling has more messages to catch up with")

    async def _drain(self, step: Step) -> None:
        """Repeat a step in DB transactions of its own until it finds no full batch."""
        appended: int | None = BATCH
        try:
            while appended is not None and appended >= BATCH:
                async with self._database.transaction() as conn:
                    appended = await step(conn)
                    if appended:
                        await notifications.wake_intake(conn)
        except SourceUnreadableError as error:
            log.warning("polling.left_out", reason=error.reason)

    async def _fresh_tasks(self) -> tuple[Task, ...]:
        """What Synapse set itself to delete; nothing where that cannot be read, said once."""
        self._reads_tasks = False
        if self._unreadable & TASK_TABLES:
            return ()
        try:
            async with self._database.transaction() as conn:
                tasks = await inbox_deletions.fresh(conn, limit=BATCH)
                if not tasks:
                    await inbox_deletions.move_on(conn)
        except SourceUnreadableError as error:
            if self._told != error.reason:
                log.warning("polling.left_out", reason=error.reason)
            self._told = error.reason
            return ()
        self._reads_tasks, self._told = True, None
        return tasks

    async def _messages(
        self, conn: Connection, *, limit: int, wait: bool, tasks: Sequence[Task]
    ) -> int | None:
        """Append what the inbox holds, and behind all of it what it held for nobody any more.

        The tasks were read before the inbox is, so nothing they speak of comes later; and nothing
        of it is routed without them.
        """
        appended = await inbox.poll(conn, limit=limit, wait=wait or bool(tasks))
        whole = appended is not None and appended < limit
        if tasks and whole and await inbox_deletions.append(conn, tasks):
            await notifications.wake_intake(conn)
        return appended

    async def _device_streams(self, conn: Connection) -> int | None:
        return await device_streams.poll(
            conn, limit=BATCH, server_name=self._server_name, unreadable=self._unreadable
        )

    async def _key_changes(self, conn: Connection) -> int | None:
        settled = self._long_committed(await key_changes.last(conn))
        return await key_changes.poll(conn, limit=BATCH, upto=settled)

    def _long_committed(self, last: int | None) -> int | None:
        """The last number as it was a minute ago: whoever drew a lower one has committed since."""
        now = asyncio.get_running_loop().time()
        settled: int | None = None
        while self._marks and self._marks[0][0] < now - LONGEST_WRITE_SECONDS:
            settled = self._marks.popleft()[1]
        if last is not None and (not self._marks or self._marks[-1][1] < last):
            self._marks.append((now, last))
        return settled
