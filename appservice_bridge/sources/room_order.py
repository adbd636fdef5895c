"""Keeps each room's order where Synapse's sender does not.

Synapse means to send the events of a room in their order, and yet one may come before an earlier
one: what it had in memory when it died is never sent, and after a failure it may send the next
transaction before it tries the failed one again. So before a transaction is stored, what its rooms
lack is read in Synapse's tables and put into the log. What Synapse then sends late is a repeat,
which intake drops.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, TypeAlias

import orjson
import structlog

from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.room_interest import RoomEvent
from appservice_bridge.sources.event_recovery import EventRecovery
from appservice_bridge.storage import room_events
from appservice_bridge.storage.database import (
    Database,
    DatabaseUnavailableError,
    SourceUnreadableError,
    reading_synapse,
)
from appservice_bridge.storage.room_events import Span

log = structlog.get_logger(__name__)

LONGEST_SECONDS: Final = 10.0  # Synapse waits a minute for an answer
UNREADABLE_PAUSE_SECONDS: Final = 30.0  # the drift guard says what is missing
MOST_ROOMS: Final = 100_000  # remembered; one that was forgotten costs a longer look
SLICE: Final = 1000
BATCH: Final = 100

Said: TypeAlias = Mapping[str, Sequence[str]]
"""The event ids of a transaction by room, in their order."""


class InRoom(NamedTuple):
    """An appservice, and a room of which events come for it."""

    appservice_id: str
    room_id: str


class LongLogError(BridgeError):
    """What came cannot be told from what did not before intake has caught up; ask again then."""

    def __init__(self) -> None:
        super().__init__("intake is far behind")


class RoomOrder:
    """What has to be in the log before a transaction's events are, for all appservices.

    Of each room the last event that was stored is remembered, so that a look is at what lies
    between two transactions, which is nothing. Dying forgets these, and a look begins where all
    was compared a few seconds ago; dying in between leaves what was recovered in the log, and the
    homeserver sends its transaction again.
    """

    def __init__(self, database: Database, recovery: EventRecovery) -> None:
        self._database = database
        self._recovery = recovery
        self._last: dict[InRoom, str] = {}
        self._rests_until = 0.0

    @asynccontextmanager
    async def kept(self, appservice_id: str, body: bytes) -> AsyncIterator[None]:
        """Recover what the rooms of a transaction lack; the block then stores it.

        It takes `LONGEST_SECONDS` at most: what could not be recovered by then comes later, behind
        that transaction.

        Raises:
            DatabaseUnavailableError: what is lacking is not known; do not store it.
        """
        said = _said(body)
        looked = await self._look(appservice_id, said)
        yield
        if looked:
            self._remember(appservice_id, said)

    async def _look(self, appservice_id: str, said: Said) -> bool:
        """Recover what belongs before these; whether a later look may begin behind them."""
        now = asyncio.get_running_loop().time()
        if not said or now < self._rests_until:
            return False
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                await self._catch_up(appservice_id, said)
        except SourceUnreadableError:
            self._rests_until = now + UNREADABLE_PAUSE_SECONDS
            return False
        except DatabaseUnavailableError:  # the homeserver keeps it, as where it cannot be stored
            raise
        except TimeoutError:  # and the next transactions are not held up by the same again
            log.warning("room_order.late", appservice=appservice_id, reason="it takes too long")
        except BridgeError as error:
            log.warning("room_order.late", appservice=appservice_id, reason=str(error))
            return False
        return True

    async def _catch_up(self, appservice_id: str, said: Said) -> None:
        spans = [
            Span(before=events[0], behind=self._last.get(InRoom(appservice_id, room_id)))
            for room_id, events in said.items()
        ]
        after, more = 0, True
        while more:
            async with self._database.statement() as conn:
                with reading_synapse():
                    unseen = await room_events.unseen_within(
                        conn, appservice_id, spans, after=after, limit=SLICE
                    )
            if unseen:
                await self._recover(appservice_id, unseen)
                after = unseen[-1].stream_ordering
            more = len(unseen) == SLICE

    async def _recover(self, appservice_id: str, unseen: Sequence[RoomEvent]) -> None:
        async with self._database.beside_synapse() as conn:
            if await room_events.log_is_long(conn):
                raise LongLogError
            missing = await self._recovery.missing(conn, appservice_id, unseen)
        while missing.events:
            await self._recovery.recover_shown(missing.first(BATCH), stored_first=True)
            missing = missing.behind(BATCH)

    def _remember(self, appservice_id: str, said: Said) -> None:
        if len(self._last) + len(said) > MOST_ROOMS:
            self._last.clear()
        for room_id, events in said.items():
            self._last[InRoom(appservice_id, room_id)] = events[-1]


def _said(body: bytes) -> Said:
    """Nothing where the body is not what it should be."""
    said: dict[str, list[str]] = {}
    try:
        for event in orjson.loads(body).get("events", []):
            room_id, event_id = event["room_id"], event["event_id"]
            if not isinstance(room_id, str) or not isinstance(event_id, str):
                return {}
            said.setdefault(room_id, []).append(event_id)
    except (ValueError, AttributeError, TypeError, KeyError):
        return {}
    return said
