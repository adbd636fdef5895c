"""Reads room events that Synapse committed and did not send, and puts them into the log."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

import aiohttp
import structlog

from appservice_bridge.domain.budget import Budget
from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.domain.owners import Owners
from appservice_bridge.domain.raw_json import MalformedError
from appservice_bridge.domain.registration import Registration
from appservice_bridge.domain.room_interest import Room, RoomEvent, RoomInterest
from appservice_bridge.domain.transaction import Kind
from appservice_bridge.sources.event_interest import of_interest
from appservice_bridge.sources.event_reader import (
    EventReader,
    HomeserverAwayError,
    as_sent,
    only_membership,
    replaced_state,
)
from appservice_bridge.storage import dead_letters, ledger, notifications, room_events
from appservice_bridge.storage.budget import require_space
from appservice_bridge.storage.database import Connection, Database
from appservice_bridge.storage.dead_letters import Buried
from appservice_bridge.storage.ledger import LedgerKey

log = structlog.get_logger(__name__)

_AT_ONCE: Final = 8
_REDACTION: Final = "m.room.redaction"
_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Events that interest the appservice and never came, ascending, and where they happened."""

    registration: Registration
    events: Sequence[RoomEvent]
    rooms: Mapping[str, Room]

    def first(self, count: int) -> "Missing":
        """The first so many of them."""
        return replace(self, events=self.events[:count])

    def behind(self, count: int) -> "Missing":
        """All behind the first so many."""
        return replace(self, events=self.events[count:])


async def _nothing(_: Connection) -> None:
    """Nothing has to be in the log before an event."""


class EventRecovery:
    """What is missing for an appservice, and the way of it into the log.

    The log takes an event as often as it is put there, and intake drops the copies. Ahead of it
    goes `before`: what has to be in the log before an event is.
    """

    def __init__(
        self,
        database: Database,
        owners: Owners,
        session: aiohttp.ClientSession,
        homeserver_url: str,
        *,
        before: Callable[[Connection], Awaitable[None]] = _nothing,
        budget: Budget = Budget(),  # noqa: B008 - frozen
    ) -> None:
        self._database = database
        self._before = before
        self._budget = budget
        self._registrations = owners.registrations
        self._interests = {
            id_: RoomInterest(registration, server_name=owners.server_name)
            for id_, registration in owners.registrations.items()
        }
        self._reader = EventReader(session, homeserver_url, server_name=owners.server_name)

    async def missing(
        self, conn: Connection, appservice_id: str, unseen: Sequence[RoomEvent]
    ) -> Missing:
        """Those of a slice that the appservice should have, and that do not wait in the log."""
        interest = self._interests[appservice_id]
        events, rooms = await of_interest(conn, appservice_id, interest, unseen)
        return Missing(registration=self._registrations[appservice_id], events=events, rooms=rooms)

    async def read(self, missing: Missing) -> list[bytes | None]:
        """The events themselves; None for what the homeserver shows to nobody.

        Raises:
            HomeserverAwayError: it does not answer now.
            DatabaseUnavailableError, SourceUnreadableError: its tables cannot be read.
        """
        return await _each(partial(self._read_one, missing), missing.events)

    async def recover_shown(self, missing: Missing) -> int:
        """Put what the homeserver shows into the log, and leave the rest to be found again.

        Returns how many events it was. The errors are those of `read`, and

        Raises:
            OverBudgetError: there is no room for more.
        """
        await self._require_space(missing.registration.id)
        return await self._put_known(missing, await self.read(missing))

    async def recover_soon(self, missing: Missing, *, seconds: float) -> bool:
        """Put what can be read soon into the log; False where an answer to some is outstanding.

        The homeserver is asked only for what does not stand in its tables as it would be sent, and
        for so many seconds. What was not read is left to be found again.

        Raises:
            OverBudgetError: there is no room for more.
            DatabaseUnavailableError, SourceUnreadableError: as in `read`.
        """
        await self._require_space(missing.registration.id)
        stored = await _each(partial(self._stored, anyway=False), missing.events)
        pairs = zip(missing.events, stored, strict=True)
        asked = replace(missing, events=[event for event, one in pairs if one is None])
        shown = await self._shown_within(asked, seconds)
        pairs = zip(missing.events, stored, strict=True)
        await self._put_known(missing, [one or shown.get(event) for event, one in pairs])
        return len(shown) == len(asked.events)

    async def _shown_within(
        self, missing: Missing, seconds: float
    ) -> Mapping[RoomEvent, bytes | None]:
        """What `read` gives, of those that were answered in so many seconds."""
        until = asyncio.get_running_loop().time() + seconds
        shown: dict[RoomEvent, bytes | None] = {}

        async def one(event: RoomEvent) -> None:
            with suppress(TimeoutError, HomeserverAwayError):
                async with asyncio.timeout_at(until):
                    shown[event] = await self._read_one(missing, event)

        await _each(one, missing.events)
        return shown

    async def _put_known(self, missing: Missing, read: Sequence[bytes | None]) -> int:
        pairs = zip(missing.events, read, strict=True)
        known = [(event, one) for event, one in pairs if one is not None]
        if known:
            missing = replace(missing, events=[event for event, _ in known])
            async with self._database.beside_synapse() as conn:
                await self.put(conn, missing, [one for _, one in known])
        return len(known)

    async def _require_space(self, appservice_id: str) -> None:
        async with self._database.transaction() as conn:
            await self.require_space(conn, appservice_id)

    async def require_space(self, conn: Connection, appservice_id: str) -> None:
        """Leave to Synapse's tables what there is no room for.

        Raises:
            OverBudgetError: so it is.
        """
        limit = self._budget.appservice_bytes
        await require_space(conn, appservice_id, appservice_bytes=limit)

    async def put(self, conn: Connection, missing: Missing, read: Sequence[bytes | None]) -> None:
        """Append what could be read, bury the rest by name, and count both.

        A redaction of what is not here is kept back by Synapse from everyone, so it was not
        forgotten.
        """
        if not read:
            return
        id_ = missing.registration.id
        outcomes = [_outcome(*one) for one in zip(missing.events, read, strict=True)]
        await ledger.count(
            conn, Counter(LedgerKey(id_, Kind.EVENT, outcome) for outcome in outcomes)
        )
        if found := [one for one in read if one is not None]:
            await self._before(conn)
            await room_events.append(conn, id_, found)
            await notifications.wake_intake(conn)
        lost = [
            event
            for event, outcome in zip(missing.events, outcomes, strict=True)
            if outcome is LedgerOutcome.UNRECOVERABLE
        ]
        if lost:
            await dead_letters.bury(conn, [_buried(id_, event) for event in lost])
        log.warning("event_recovery.found", appservice=id_, **Counter(map(str, outcomes)))

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


async def _each(
    read: Callable[[RoomEvent], Awaitable[_Read]], events: Sequence[RoomEvent]
) -> list[_Read]:
    """Some at a time; an error is passed on when all have ended."""
    at_once = asyncio.Semaphore(_AT_ONCE)

    async def one(event: RoomEvent) -> _Read:
        async with at_once:
            return await read(event)

    found: list[_Read] = []
    for each in await asyncio.gather(*map(one, events), return_exceptions=True):
        if isinstance(each, BaseException):
            raise each
        found.append(each)
    return found


def _outcome(event: RoomEvent, read: bytes | None) -> LedgerOutcome:
    if read is not None:
        return LedgerOutcome.RECOVERED
    redaction = event.type == _REDACTION
    return LedgerOutcome.WITHHELD if redaction else LedgerOutcome.UNRECOVERABLE


def _buried(appservice_id: str, event: RoomEvent) -> Buried:
    reason = f"forgotten by the homeserver, which shows {event.event_id} to no user of this one"
    return Buried(appservice_id=appservice_id, kind=Kind.EVENT, reason=reason, payload=None)
