"""Counts what becomes of deliveries in this process, for Prometheus."""

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Final, assert_never

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from appservice_bridge.domain.outcome import Acked, Outcome, Refused, Unreachable

BOUNDS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 60, 600, 3600, 86400)
"""Upper bounds of the histogram's buckets, in seconds; a last one has no bound."""


class DeliveryMetrics(Collector):
    """Attempts by outcome, and how long items took from their capture to the ack.

    An ack costs the same however many items it is for: its items are taken to be captured evenly
    between the first and the last of them. It counts on while workers of the process are replaced.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._attempts: Counter[tuple[str, str]] = Counter()
        self._items: dict[str, list[int]] = {}  # by bucket; each item in one of them
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def attempted(self, appservice_id: str, outcome: Outcome) -> None:
        """An attempt ended."""
        self._attempts[appservice_id, outcome_word(outcome)] += 1

    def delivered(
        self, appservice_id: str, *, items: int, captured: tuple[float, float] | None
    ) -> None:
        """So many items were acknowledged, captured between two readings of the clock."""
        if captured is None or not items:
            return
        now = self._clock()
        newest, oldest = sorted(max(0.0, now - at) for at in captured)
        buckets = self._items.setdefault(appservice_id, [0] * (len(BOUNDS) + 1))
        first, last = bisect_left(BOUNDS, newest), bisect_left(BOUNDS, oldest)
        before = 0
        for place in range(first, last):
            within = round(items * (BOUNDS[place] - newest) / (oldest - newest))
            buckets[place] += within - before
            before = within
        buckets[last] += items - before
        self._seconds[appservice_id] += items * (newest + oldest) / 2

    def collect(self) -> Iterator[Metric]:
        """What was counted; may be asked from another thread than counts."""
        attempts = CounterMetricFamily(
            "appservice_bridge_attempts",
            "Attempts to deliver a transaction, by outcome: acked, an HTTP status, or a word for "
            "why there was no answer",
            labels=["appservice", "outcome"],
        )
        for labels, count in list(self._attempts.items()):
            attempts.add_metric(labels, count)
        yield attempts
        seconds = HistogramMetricFamily(
            "appservice_bridge_capture_to_ack_seconds",
            "Items by the seconds from their capture to the ack's commit",
            labels=["appservice"],
        )
        for appservice_id, buckets in list(self._items.items()):
            seconds.add_metric(
                [appservice_id],
                buckets=list(_cumulated(tuple(buckets))),
                sum_value=self._seconds[appservice_id],
            )
        yield seconds


def outcome_word(outcome: Outcome) -> str:
    """One of few words, whatever an appservice answers."""
    match outcome:
        case Acked():
            return "acked"
        case Refused(status=status):
            return f"http_{status}"
        case Unreachable(reason=reason):
            return reason
        case _:
            assert_never(outcome)


def _cumulated(buckets: Sequence[int]) -> Iterator[tuple[str, float]]:
    total = 0
    for bound, items in zip((*BOUNDS, float("inf")), buckets, strict=True):
        total += items
        yield ("+Inf" if bound == float("inf") else str(float(bound))), total
