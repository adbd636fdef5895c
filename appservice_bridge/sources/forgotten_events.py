"""Finds room events that Synapse committed and forgot to send, and puts them into the log.

Synapse notes how far it handed events to its own sender (`appservice_stream_position`), and keeps
what that has not sent yet in memory. When it dies there, it never misses them. What belongs before
the next transaction of a room comes by `room_order`; what nothing follows is found here.

A restart of it leaves no sure sign in its database, so nothing waits for one: every few seconds the
events up to its position are compared with what came. What did not come counts as forgotten when
Synapse is not likely to hold it any more: something later came, and but for failures it sends in
order; or nothing came from it for a while, with the relay at work; or minutes have passed. An error
here costs a second copy that intake drops.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import structlog

from appservice_bridge.domain.owners import Owners
from appservice_bridge.domain.waiting import set_within
from appservice_bridge.sources.event_reader import HomeserverAwayError
from appservice_bridge.sources.event_recovery import EventRecovery, Missing
from appservice_bridge.storage import event_cursor, room_events
from appservice_bridge.storage.budget import OverBudgetError
from appservice_bridge.storage.database import (
    Database,
    DatabaseUnavailableError,
    SourceUnreadableError,
)

log = structlog.get_logger(__name__)

UNREADABLE_PAUSE_SECONDS: Final = 30.0  # the drift guard says what is missing
EVERY_SECONDS: Final = 5.0
QUIET_SECONDS: Final = 10.0
RESTING_SECONDS: Final = 30.0  # it is woken from its rests when the relay can store again
LONGEST_SECONDS: Final = 300.0  # nothing is in memory for that long, whatever else comes meanwhile
SLICE: Final = 1000
BATCH: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """All events up to `bound` were in Synapse's sender at that time of the loop's clock."""

    bound: int
    at: float


class ForgottenEvents:
    """Compares and recovers for all appservices; any number of workers may, each for itself.

    Dying anywhere leaves the cursor where it was, so that the same events are found again: what
    goes into the log and the cursor behind it are one DB transaction.
    """

    def __init__(
        self,
        database: Database,
        owners: Owners,
        recovery: EventRecovery,
        *,
        quiet_seconds: float = QUIET_SECONDS,
        resting_seconds: float = RESTING_SECONDS,
    ) -> None:
        self._database = database
        self._registrations = owners.registrations
        self._recovery = recovery
        self._quiet_seconds = quiet_seconds
        self._resting_seconds = resting_seconds
        self._notes: dict[str, Note] = {}
        self._stall: Note | None = None
        self._told_off = False

    async def run(self, stop: asyncio.Event, *, every_seconds: float = EVERY_SECONDS) -> None:
        """Compare every so often, until `stop` is set; what cannot be asked now is asked later."""
        clock = asyncio.get_running_loop().time
        looked_at = clock()
        while not stop.is_set():
            if clock() - looked_at > 3 * every_seconds:
                self._notes.clear()  # who was frozen did not see whether Synapse sent
                self._stall = None
            looked_at = clock()
            try:
                await self.look_once()
            except (DatabaseUnavailableError, HomeserverAwayError) as error:
                log.info("forgotten_events.rests", reason=error.reason)
            except SourceUnreadableError as error:
                log.warning("forgotten_events.left_out", reason=error.reason)
                await set_within(stop, UNREADABLE_PAUSE_SECONDS)
            await set_within(stop, every_seconds)

    def _tell_off(self) -> None:
        if not self._told_off:
            log.error("forgotten_events.off", mend="appservice-bridge install --print-grants")
        self._told_off = True

    async def look_once(self) -> int:
        """One comparison for every appservice; returns how many events were recovered.

        Raises:
            DatabaseUnavailableError, HomeserverAwayError: some were not compared.
        """
        async with self._database.beside_synapse() as conn:
            if not await room_events.readable(conn):
                self._tell_off()
                return 0
            self._told_off = False
            if await room_events.log_is_long(conn):
                return 0
            position, latest = await room_events.position(conn)
            cursors = await event_cursor.settled(conn)
            if unknown := sorted(self._registrations.keys() - cursors.keys()):
                await event_cursor.forget(conn)
                await event_cursor.start(conn, unknown, at=position)
        known = {id_: cursor for id_, cursor in cursors.items() if id_ in self._registrations}
        return await self._compare_all(known, position, latest)

    def _has_stalled(self, position: int, latest: int) -> bool:
        """Whether Synapse has left its last events alone for a while.

        It comes to them at the next one, and after a restart that may be a long time. It will send
        them then, and they are repeats; so the cursor never passes its position.
        """
        now = asyncio.get_running_loop().time()
        if latest <= position:
            self._stall = None
        elif self._stall is None or self._stall.bound != position:
            self._stall = Note(bound=position, at=now)
        return self._stall is not None and now - self._stall.at >= self._quiet_seconds

    async def _compare_all(self, cursors: Mapping[str, int], position: int, latest: int) -> int:
        """All of them, though the homeserver may not answer for one: its token may be unknown."""
        recovered, away = 0, None
        stalled = self._has_stalled(position, latest)
        for appservice_id, cursor in cursors.items():
            try:
                found, reached = await self._compare(appservice_id, cursor, position)
                recovered += found
                if stalled and reached >= position:  # else it would overtake what is not settled
                    missing, _ = await self._missing(appservice_id, position, latest)
                    recovered += await self._recovery.recover_shown(missing)
            except HomeserverAwayError as error:
                away = error
            except event_cursor.CursorMovedError:
                self._notes.pop(appservice_id, None)
            except OverBudgetError:
                log.debug("forgotten_events.no_room", appservice=appservice_id)
        if away is not None:
            raise away
        return recovered

    async def _compare(self, appservice_id: str, cursor: int, position: int) -> tuple[int, int]:
        """Move one appservice's cursor as far as everything came, or is forgotten for sure.

        Returns how many events were recovered, and where the cursor is.
        """
        now = asyncio.get_running_loop().time()
        note = self._notes.get(appservice_id)
        if note is None or note.bound <= cursor:
            note = self._notes[appservice_id] = Note(bound=position, at=now)
        recovered = 0
        while cursor < note.bound:
            missing, to = await self._missing(appservice_id, cursor, note.bound)
            batch = missing.first(BATCH)
            if batch.events and not await self._is_due(appservice_id, note, now):
                to, batch = batch.events[0].stream_ordering - 1, missing.first(0)
                note = replace(note, bound=to)  # this far, and no further in this round
            elif len(missing.events) > BATCH:
                to = batch.events[-1].stream_ordering
            recovered += await self._recover(batch, cursor, to)
            cursor = max(cursor, to)
        return recovered, cursor

    async def _missing(self, appservice_id: str, cursor: int, bound: int) -> tuple[Missing, int]:
        """What is missing of the next slice, and where it ends."""
        async with self._database.beside_synapse() as conn:
            unseen = await room_events.unseen(
                conn, appservice_id, after=cursor, to=bound, limit=SLICE
            )
            missing = await self._recovery.missing(conn, appservice_id, unseen)
        return missing, bound if len(unseen) < SLICE else unseen[-1].stream_ordering

    async def _is_due(self, appservice_id: str, note: Note, now: float) -> bool:
        """Whether there is room for what is missing, and Synapse has forgotten it."""
        try:
            async with self._database.transaction() as conn:
                await self._recovery.require_space(conn, appservice_id)
        except OverBudgetError:
            return False
        return await self._forgotten(appservice_id, note, now)

    async def _forgotten(self, appservice_id: str, note: Note, now: float) -> bool:
        """Whether Synapse is not likely to hold any more what is missing up to the note."""
        async with self._database.beside_synapse() as conn:
            holding = await room_events.holding(
                conn, appservice_id, bound=note.bound, quiet_seconds=self._quiet_seconds
            )
        if holding.overtaken:
            return True
        waited = now - note.at
        if not holding.resting and waited >= LONGEST_SECONDS:
            return True
        patience = self._resting_seconds if holding.resting else self._quiet_seconds
        return not holding.sending and waited >= patience

    async def _skip_old(self, appservice_id: str) -> None:
        """Nobody knows whether it came; Synapse's own copies of it are taken, should they come.

        Raises:
            CursorMovedError: some was skipped; look again.
        """
        async with self._database.beside_synapse() as conn:
            skipped = await event_cursor.skip_old(conn, appservice_id)
        if skipped:
            days = event_cursor.LOOK_BACK.days
            log.error("forgotten_events.not_compared", appservice=appservice_id, days=days)
            raise event_cursor.CursorMovedError(appservice_id)

    async def _recover(self, missing: Missing, cursor: int, to: int) -> int:
        """Put what is missing into the log, and the cursor behind it; returns how many it was."""
        if missing.events:
            await self._skip_old(missing.registration.id)
        read = await self._recovery.read(missing) if missing.events else []
        if to <= cursor:
            return 0
        async with self._database.beside_synapse() as conn:
            await event_cursor.raise_to(conn, missing.registration.id, at=cursor, to=to)
            await self._recovery.put(conn, missing, read)
        return sum(one is not None for one in read)
