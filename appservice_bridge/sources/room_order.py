"""Keeps each room's order where Synapse's sender does not.

Synapse means to send the events of a room in their order, and yet one may come before an earlier
one: what it had in memory when it died is never sent, and after a failure it may send the next
transaction before it tries the failed one again. So before a transaction is stored, what its rooms
lack is read in Synapse's tables and put into the log. What Synapse then sends late is a repeat,
which intake drops.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final, NamedTuple

import orjson
import structlog

from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.room_interest import RoomEvent
from appservice_bridge.sources.event_recovery import EventRecovery
from appservice_bridge.storage import event_cursor, room_events
from appservice_bridge.storage.budget import OverBudgetError
from appservice_bridge.storage.database import (
    Database,
    DatabaseUnavailableError,
    SourceUnreadableError,
    reading_synapse,
)
from appservice_bridge.storage.room_events import Span

log = structlog.get_logger(__name__)

ASKED_SECONDS: Final = 5.0  # for what does not stand in Synapse's tables as it is sent
LONGEST_SECONDS: Final = 10.0  # Synapse waits a minute for an answer
UNREADABLE_PAUSE_SECONDS: Final = 30.0  # the drift guard says what is missing
MOST_ROOMS: Final = 100_000  # remembered; one that was forgotten costs a longer look
MOST_LOOKS: Final = 4  # at once: whatever locks Synapse's tables, lanes have connections left
SLICE: Final = 1000
BATCH: Final = 100


class Brought(NamedTuple):
    """What a transaction brings.

    Attributes:
        rooms: its events' ids by room, in their order.
        old: those that happened long ago, by their senders' clocks.
    """

    rooms: Mapping[str, Sequence[str]]
    old: Sequence[str]


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
    between two transactions, which is nothing; within one Synapse leaves nothing out. Dying forgets
    these, and a look begins where all was compared a few seconds ago; dying in between leaves what
    was recovered in the log, and the homeserver sends its transaction again.
    """

    def __init__(self, database: Database, recovery: EventRecovery) -> None:
        self._database = database
        self._recovery = recovery
        self._last: dict[InRoom, str] = {}
        self._begun: set[str] = set()
        self._places = asyncio.Semaphore(MOST_LOOKS)
        self._rests_until = 0.0

    @asynccontextmanager
    async def kept(self, appservice_id: str, body: bytes) -> AsyncIterator[None]:
        """Recover what the rooms of a transaction lack; the block then stores it.

        It takes `LONGEST_SECONDS` at most: what could not be recovered by then comes later, behind
        that transaction.

        Raises:
            DatabaseUnavailableError: what is lacking is not known; do not store it.
        """
        brought = _brought(body)
        looked = await self._look(appservice_id, brought)
        yield
        if looked:
            self._remember(appservice_id, brought)

    async def _look(self, appservice_id: str, brought: Brought) -> bool:
        """Recover what belongs before these; whether a later look may begin behind them."""
        now = asyncio.get_running_loop().time()
        if not brought.rooms or now < self._rests_until:
            return False
        late = "it takes too long"  # and then the next transactions are not held up by it again
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                if await self._catch_up(appservice_id, brought, asked_until=now + ASKED_SECONDS):
                    return True
                late = "the homeserver does not show all of it yet"
        except SourceUnreadableError as error:
            self._rests_until = now + UNREADABLE_PAUSE_SECONDS
            log.warning("room_order.late", appservice=appservice_id, reason=str(error))
            return False
        except DatabaseUnavailableError:
            raise  # the homeserver keeps it, as where it cannot be stored
        except OverBudgetError:
            return False  # nor is there room for the transaction
        except BridgeError as error:
            log.warning("room_order.late", appservice=appservice_id, reason=str(error))
            return False
        except TimeoutError:
            pass
        log.warning("room_order.late", appservice=appservice_id, reason=late)
        return True

    async def _catch_up(self, appservice_id: str, brought: Brought, *, asked_until: float) -> bool:
        """Recover all that is lacking; False where an answer of the homeserver is outstanding."""
        spans = [
            Span(before=events[0], behind=self._last.get(InRoom(appservice_id, room_id)))
            for room_id, events in brought.rooms.items()
        ]
        await self._place(appservice_id, brought)
        whole, after, more = True, 0, True
        while more:
            async with self._places, self._database.statement() as conn:
                with reading_synapse():
                    unseen = await room_events.unseen_within(
                        conn, appservice_id, spans, after=after, limit=SLICE
                    )
            if unseen:
                whole &= await self._recover(appservice_id, unseen, asked_until)
                after = unseen[-1].stream_ordering
            more = len(unseen) == SLICE
        return whole

    async def _place(self, appservice_id: str, brought: Brought) -> None:
        """Know from where on events are compared, and which of these were long ago."""
        if appservice_id not in self._begun:
            firsts = [events[0] for events in brought.rooms.values()]
            async with self._places, self._database.beside_synapse() as conn:
                await event_cursor.begin(conn, appservice_id, firsts)
            self._begun.add(appservice_id)
        if brought.old:
            async with self._places, self._database.beside_synapse() as conn:
                await event_cursor.mark_compared(conn, appservice_id, brought.old)

    async def _recover(
        self, appservice_id: str, unseen: Sequence[RoomEvent], asked_until: float
    ) -> bool:
        async with self._places, self._database.beside_synapse() as conn:
            if await room_events.log_is_long(conn):
                raise LongLogError
            missing = await self._recovery.missing(conn, appservice_id, unseen)
        whole = True
        while missing.events:
            seconds = asked_until - asyncio.get_running_loop().time()
            whole &= await self._recovery.recover_soon(missing.first(BATCH), seconds=seconds)
            missing = missing.behind(BATCH)
        return whole

    def _remember(self, appservice_id: str, brought: Brought) -> None:
        if len(self._last) + len(brought.rooms) > MOST_ROOMS:
            self._last.clear()
        for room_id, events in brought.rooms.items():
            self._last[InRoom(appservice_id, room_id)] = events[-1]


def _brought(body: bytes) -> Brought:
    """Nothing where the body is not what it should be."""
    rooms: dict[str, list[str]] = {}
    old = []
    long_ago = time.time() * 1000 - event_cursor.LOOK_BACK / timedelta(milliseconds=1)
    try:
        for event in orjson.loads(body).get("events", []):
            room_id, event_id = event["room_id"], event["event_id"]
            if not isinstance(room_id, str) or not isinstance(event_id, str):
                return Brought({}, [])
            rooms.setdefault(room_id, []).append(event_id)
            if event.get("origin_server_ts", long_ago) <= long_ago:
                old.append(event_id)
    except (ValueError, AttributeError, TypeError, KeyError):
        return Brought({}, [])
    return Brought(rooms, old)
