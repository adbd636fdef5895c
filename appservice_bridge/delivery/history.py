"""The last hour of every lane, in this process's memory: how much waited, and how fast it went."""

import asyncio
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from appservice_bridge.domain.waiting import set_within
from appservice_bridge.storage import samples
from appservice_bridge.storage.database import Database, DatabaseUnavailableError
from appservice_bridge.storage.samples import Sample

log = structlog.get_logger(__name__)

EVERY_SECONDS: Final = 10.0
SLOTS: Final = 360  # an hour
MOST_LANES: Final = 2000  # with a line of their own, of 6 kB each; the sum holds all
RATE_SECONDS: Final = 60.0
_NOTHING: Final = float("nan")
_BLANK: Final = (_NOTHING,) * SLOTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One moment of a lane, or of all together.

    Attributes:
        ts: milliseconds since 1970, by Postgres' clock.
        backlog: items that wait.
        acked_per_second: items; None where it is not known since when.
        failed_per_second: attempts; those before an ack that came between two looks are not seen.
        oldest_seconds: age of the oldest that waits; 0: nothing does.
    """

    ts: int
    backlog: float
    acked_per_second: float | None
    failed_per_second: float | None
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one look found; rates are NaN where there is nothing to compare with."""

    backlog: float
    acked: float
    failed: float
    oldest: float


class _Line:
    """Four rings of an hour, as single floats."""

    __slots__ = ("rings",)

    def __init__(self) -> None:
        self.rings = tuple(array("f", _BLANK) for _ in range(4))

    def put(self, slot: int, seen: _Seen | None) -> None:
        values = [_NOTHING] * 4
        if seen is not None:
            values = [seen.backlog, seen.acked, seen.failed, seen.oldest]
        for ring, value in zip(self.rings, values, strict=True):
            ring[slot] = value

    def is_blank(self) -> bool:
        return all(math.isnan(value) for value in self.rings[0])


class History:
    """What was sampled; it outlives a reload."""

    def __init__(self) -> None:
        self._times = array("d", _BLANK)
        self._next = 0
        self._sum = _Line()
        self._lines: dict[str, _Line] = {}
        self._last: dict[str, Sample] = {}
        self._last_at = -math.inf

    async def run(self, database: Database, stop: asyncio.Event) -> None:
        """Sample until `stop` is set; what cannot be seen leaves a gap."""
        while not stop.is_set():
            try:
                async with database.transaction() as conn:
                    found = await samples.take(conn)
            except DatabaseUnavailableError as error:
                log.warning("history.rests", reason=error.reason)
            else:
                self.add(found)
            await set_within(stop, EVERY_SECONDS)

    def add(self, found: Sequence[Sample]) -> None:
        """One look at all lanes; one that follows another at once, as at a reload, is left out."""
        if not found or abs(found[0].at - self._last_at) < EVERY_SECONDS / 2:
            return
        seen = {one.appservice_id: self._compared(one) for one in found}
        self._times[self._next] = self._last_at = found[0].at
        self._sum.put(self._next, _together(seen.values()))
        for appservice_id in seen:
            if appservice_id not in self._lines and len(self._lines) < MOST_LANES:
                self._lines[appservice_id] = _Line()
        for appservice_id, line in list(self._lines.items()):
            line.put(self._next, seen.get(appservice_id))
            if appservice_id not in seen and line.is_blank():
                del self._lines[appservice_id]
        self._last = {one.appservice_id: one for one in found}
        self._next = (self._next + 1) % SLOTS

    def points(self, appservice_id: str | None, *, minutes: float) -> list[Point]:
        """Of one appservice, or of all together, the oldest first; none of one that is not known.

        Of more than 2,000 appservices those that came later have no line of their own.
        """
        line = self._sum if appservice_id is None else self._lines.get(appservice_id)
        if line is None:
            return []
        return [self._point(line, slot) for slot in self._slots(line, minutes * 60)]

    def rates(self) -> dict[str, float]:
        """Items acknowledged per second, of each appservice over the last minute."""
        found = {}
        for appservice_id, line in self._lines.items():
            acked = [line.rings[1][slot] for slot in self._slots(line, RATE_SECONDS)]
            known = [rate for rate in acked if not math.isnan(rate)]
            if known:
                found[appservice_id] = round(sum(known) / len(known), 3)
        return found

    def _slots(self, line: _Line, seconds: float) -> Iterator[int]:
        """Where something was seen of it within the last so many seconds, the oldest first."""
        count = min(SLOTS, math.ceil(seconds / EVERY_SECONDS) + 1)
        for slot in range(self._next - count, self._next):
            recent = self._last_at - self._times[slot] < seconds
            if recent and not math.isnan(line.rings[0][slot]):
                yield slot % SLOTS

    def _point(self, line: _Line, slot: int) -> Point:
        backlog, acked, failed, oldest = (ring[slot] for ring in line.rings)
        return Point(
            ts=round(self._times[slot] * 1000),
            backlog=backlog,
            acked_per_second=_or_none(acked),
            failed_per_second=_or_none(failed),
            oldest_seconds=round(oldest, 3),
        )

    def _compared(self, now: Sample) -> _Seen:
        before = self._last.get(now.appservice_id)
        acked = failed = _NOTHING
        if before is not None and now.at > before.at:
            seconds = now.at - before.at
            acked = max(0, now.delivered - before.delivered) / seconds
            more = now.failed_attempts - before.failed_attempts
            failed = (more if more >= 0 else now.failed_attempts) / seconds
        return _Seen(now.waiting, acked, failed, now.oldest_seconds or 0.0)


def _together(seen: Iterable[_Seen]) -> _Seen:
    every = list(seen)
    acked = [one.acked for one in every if not math.isnan(one.acked)]
    failed = [one.failed for one in every if not math.isnan(one.failed)]
    return _Seen(
        sum(one.backlog for one in every),
        sum(acked) if acked else _NOTHING,
        sum(failed) if failed else _NOTHING,
        max(one.oldest for one in every),
    )


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 3)
