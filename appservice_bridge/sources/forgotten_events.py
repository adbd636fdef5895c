"""Finds room events that Synapse committed and forgot to send, and puts them into the log.

Synapse notes how far it handed events to its own sender (`appservice_stream_position`), and keeps
what that has not sent yet in memory. When it dies there, nobody but this module misses them.

A restart of it leaves no sure sign in its database, so nothing waits for one: every few seconds the
events up to its position are compared with what came. What did not come counts as forgotten when
Synapse cannot hold it any more: something later came, and it sends in order; or nothing came from
it for a while, with the relay at work. An error here costs a second copy that intake drops.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import aiohttp
import orjson
import structlog

from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.domain.owners import Owners
from appservice_bridge.domain.raw_json import MalformedError
from appservice_bridge.domain.registration import Registration
from appservice_bridge.domain.room_interest import Room, RoomEvent, RoomInterest
from appservice_bridge.domain.transaction import Kind
from appservice_bridge.domain.waiting import set_within
from appservice_bridge.sources.event_interest import of_interest
from appservice_bridge.sources.event_reader import (
    EventReader,
    HomeserverAwayError,
    as_sent,
    only_membership,
    replaced_state,
)
from appservice_bridge.storage import dead_letters, ledger, notifications, room_events
from appservice_bridge.storage.database import (
    Connection,
    Database,
    DatabaseUnavailableError,
    SourceUnreadableError,
)
from appservice_bridge.storage.dead_letters import Buried
from appservice_bridge.storage.ledger import LedgerKey

log = structlog.get_logger(__name__)

UNREADABLE_PAUSE_SECONDS: Final = 30.0  # the drift guard says what is missing
EVERY_SECONDS: Final = 5.0
QUIET_SECONDS: Final = 10.0
RESTING_SECONDS: Final = 30.0  # it is woken from its rests when the relay can store again
SLICE: Final = 1000
BATCH: Final = 100
HURRY_SECONDS: Final = 1.0
_AT_ONCE: Final = 8
_REDACTION: Final = "m.room.redaction"


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """All events up to `bound` were in Synapse's sender at that time of the loop's clock."""

    bound: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Events that interest the appservice and never came, ascending, and where they happened."""

    registration: Registration
    events: Sequence[RoomEvent]
    rooms: Mapping[str, Room]

    def first(self, count: int) -> "Missing":
        """No more than so many."""
        return replace(self, events=self.events[:count])


class ForgottenEvents:
    """Compares and recovers for all appservices; any number of workers may, each for itself.

    Dying anywhere leaves the cursor where it was, so that the same events are found again: what
    goes into the log and the cursor behind it are one DB transaction.
    """

    def __init__(
        self,
        database: Database,
        owners: Owners,
        session: aiohttp.ClientSession,
        homeserver_url: str,
        *,
        quiet_seconds: float = QUIET_SECONDS,
        resting_seconds: float = RESTING_SECONDS,
    ) -> None:
        self._database = database
        self._registrations = owners.registrations
        self._interests = {
            id_: RoomInterest(registration, server_name=owners.server_name)
            for id_, registration in owners.registrations.items()
        }
        self._reader = EventReader(session, homeserver_url, server_name=owners.server_name)
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
            cursors = await room_events.cursors(conn)
            if unknown := sorted(self._registrations.keys() - cursors.keys()):
                await room_events.forget_cursors(conn)
                await room_events.start_cursors(conn, unknown, at=position)
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
                    recovered += await self._recover_early(missing)
            except HomeserverAwayError as error:
                away = error
            except room_events.CursorMovedError:
                self._notes.pop(appservice_id, None)
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
            if batch.events and not await self._forgotten(appservice_id, note, now):
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
            missing = await self._of_interest(conn, appservice_id, unseen)
        return missing, bound if len(unseen) < SLICE else unseen[-1].stream_ordering

    async def _of_interest(
        self, conn: Connection, appservice_id: str, unseen: Sequence[RoomEvent]
    ) -> Missing:
        interest = self._interests[appservice_id]
        events, rooms = await of_interest(conn, appservice_id, interest, unseen)
        return Missing(registration=self._registrations[appservice_id], events=events, rooms=rooms)

    async def _forgotten(self, appservice_id: str, note: Note, now: float) -> bool:
        """Whether Synapse cannot hold any more what is missing up to the note."""
        async with self._database.beside_synapse() as conn:
            holding = await room_events.holding(
                conn, appservice_id, bound=note.bound, quiet_seconds=self._quiet_seconds
            )
        if holding.overtaken:
            return True
        patience = self._resting_seconds if holding.resting else self._quiet_seconds
        return not holding.sending and now - note.at >= patience

    async def _recover(self, missing: Missing, cursor: int, to: int) -> int:
        """Put what is missing into the log, and the cursor behind it; returns how many it was."""
        read = await self._read(missing) if missing.events else []
        if to <= cursor:
            return 0
        async with self._database.beside_synapse() as conn:
            await room_events.raise_cursor(conn, missing.registration.id, at=cursor, to=to)
            await _put(conn, missing, read)
        return sum(one is not None for one in read)

    async def _read(self, missing: Missing, *, hurry: bool = False) -> list[bytes | None]:
        """The events themselves; None for what the homeserver shows to nobody."""
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def one(event: RoomEvent) -> bytes | None:
            async with at_once:
                early = await self._stored(event, anyway=False) if hurry else None
                return early or await self._read_one(missing, event)

        read: list[bytes | None] = []
        each = (one(event) for event in missing.events)
        for found in await asyncio.gather(*each, return_exceptions=True):
            if isinstance(found, BaseException):
                raise found  # all have ended by now
            read.append(found)
        return read

    async def _read_one(self, missing: Missing, event: RoomEvent) -> bytes | None:
        """What a user of the appservice may read; what happened to one of them in any case.

        Synapse sends invites, leaves, kicks and bans, and shows them to nobody outside the room.
        """
        registration = missing.registration
        interest = self._interests[registration.id]
        users = interest.witnesses(event, missing.rooms[event.room_id])
        read = await self._reader.read(registration, event, users)
        if read is None and interest.is_own_membership(event):
            return await self._stored(event, anyway=True)
        return read

    async def _stored(self, event: RoomEvent, *, anyway: bool) -> bytes | None:
        """The event out of Synapse's tables, if it is plain; a redacted membership `anyway`."""
        async with self._database.beside_synapse() as conn:
            stored = await room_events.stored(conn, event.event_id)
            if stored is None or not (stored.plain or anyway):
                return None
            try:
                pdu = only_membership(stored.json) if stored.redacted else stored.json
                replaced = replaced_state(pdu)
                was = None if replaced is None else await room_events.stored(conn, replaced)
                before = was.json if was is not None and was.plain else None
                now_ms = int(time.time() * 1000)
                return as_sent(event, pdu, replaced=before, now_ms=now_ms)
            except (MalformedError, KeyError, ValueError):
                return None

    async def before_first(self, appservice_id: str, body: bytes) -> None:
        """Recover what was forgotten in the rooms of a transaction that is about to be stored.

        For the first one on a connection: the homeserver may have been restarted, and what it
        forgot belongs before what it sends now. Its sender keeps the order of each room, so there
        is no doubt; and it reads what it can in Synapse's tables, for Synapse is just starting. It
        never fails and takes a second at most: what is not done then comes later,
        behind that transaction.
        """
        try:
            async with asyncio.timeout(HURRY_SECONDS):
                await self._recover_before(appservice_id, _event_ids(body))
        except (TimeoutError, BridgeError) as error:
            log.warning("forgotten_events.late", appservice=appservice_id, reason=str(error))

    async def _recover_before(self, appservice_id: str, event_ids: Sequence[str]) -> None:
        async with self._database.beside_synapse() as conn:
            if not event_ids or not await room_events.readable(conn):
                return
            unseen = await room_events.unseen_before(conn, appservice_id, event_ids, limit=BATCH)
            missing = await self._of_interest(conn, appservice_id, unseen)
        await self._recover_early(missing, hurry=True)

    async def _recover_early(self, missing: Missing, *, hurry: bool = False) -> int:
        """Put what can be read into the log; the cursor comes by later, and finds that it came."""
        read = await self._read(missing, hurry=hurry)
        pairs = zip(missing.events, read, strict=True)
        shown = [(event, one) for event, one in pairs if one is not None]
        if shown:
            missing = replace(missing, events=[event for event, _ in shown])
            async with self._database.beside_synapse() as conn:
                await _put(conn, missing, [one for _, one in shown])
        return len(shown)


async def _put(conn: Connection, missing: Missing, read: Sequence[bytes | None]) -> None:
    """Append what could be read, bury the rest by name, and count both.

    A redaction of what is not here is kept back by Synapse from everyone, so it was not forgotten.
    """
    if not read:
        return
    id_ = missing.registration.id
    outcomes = [_outcome(*one) for one in zip(missing.events, read, strict=True)]
    await ledger.count(conn, Counter(LedgerKey(id_, Kind.EVENT, outcome) for outcome in outcomes))
    if found := [one for one in read if one is not None]:
        await room_events.append(conn, id_, found)
        await notifications.wake_intake(conn)
    lost = [
        event
        for event, outcome in zip(missing.events, outcomes, strict=True)
        if outcome is LedgerOutcome.UNRECOVERABLE
    ]
    if lost:
        await dead_letters.bury(conn, [_buried(id_, event) for event in lost])
    log.warning("forgotten_events.found", appservice=id_, **Counter(map(str, outcomes)))


def _outcome(event: RoomEvent, read: bytes | None) -> LedgerOutcome:
    if read is not None:
        return LedgerOutcome.RECOVERED
    redaction = event.type == _REDACTION
    return LedgerOutcome.WITHHELD if redaction else LedgerOutcome.UNRECOVERABLE


def _buried(appservice_id: str, event: RoomEvent) -> Buried:
    reason = f"forgotten by the homeserver, which shows {event.event_id} to no user of this one"
    return Buried(appservice_id=appservice_id, kind=Kind.EVENT, reason=reason, payload=None)


def _event_ids(body: bytes) -> list[str]:
    """The ids of a transaction's events; none where the body is not what it should be."""
    try:
        events = orjson.loads(body).get("events", [])
        return [event["event_id"] for event in events if isinstance(event["event_id"], str)]
    except (ValueError, AttributeError, TypeError, KeyError):
        return []
