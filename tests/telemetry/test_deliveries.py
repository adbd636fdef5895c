"""What is counted of deliveries: each item once, in the bucket of its age."""

from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from appservice_bridge.domain.outcome import Acked, Outcome, Refused, Unreachable
from appservice_bridge.telemetry.deliveries import BOUNDS, DeliveryMetrics

NAME = "appservice_bridge_capture_to_ack_seconds"


@pytest.fixture
def counted() -> DeliveryMetrics:
    """It is a thousand seconds after the clock began."""
    return DeliveryMetrics(clock=lambda: 1000.0)


def sample(of: DeliveryMetrics, name: str, **labels: str) -> float | None:
    registry = CollectorRegistry()
    registry.register(of)
    return registry.get_sample_value(name, {"appservice": "bot"} | labels)


def by_bound(of: DeliveryMetrics) -> dict[float, float]:
    """How many items are no older than each bound."""

    def found() -> Iterator[tuple[float, float]]:
        for bound in BOUNDS:
            yield bound, sample(of, f"{NAME}_bucket", le=str(float(bound))) or 0.0

    return dict(found())


def test_items_are_spread_evenly_between_the_first_and_the_last(counted: DeliveryMetrics) -> None:
    counted.delivered("bot", items=100, captured=(900.0, 1000.0))
    found = by_bound(counted)
    assert (found[0.005], found[1], found[30], found[60], found[600]) == (0, 1, 30, 60, 100)
    assert sample(counted, f"{NAME}_count") == 100
    assert sample(counted, f"{NAME}_sum") == 5000


def test_each_item_is_in_one_bucket_whatever_the_times(counted: DeliveryMetrics) -> None:
    for items, captured in (
        (3, (999.99, 999.999)),
        (7, (1000.0, 1000.0)),
        (1, (1001.0, 1001.0)),  # as read a moment later than it is acked
        (5, (999.0, 990.0)),  # recovered: the later one is the older
        (9, (-1e6, -1e6)),
    ):
        before = sample(counted, f"{NAME}_count") or 0
        counted.delivered("bot", items=items, captured=captured)
        assert sample(counted, f"{NAME}_count") == before + items
    steps = list(by_bound(counted).values())
    assert steps == sorted(steps)
    assert steps[-1] == 16


def test_a_transaction_without_items_counts_none(counted: DeliveryMetrics) -> None:
    counted.delivered("bot", items=0, captured=None)
    assert sample(counted, f"{NAME}_count") is None


@pytest.mark.parametrize(
    ("outcome", "word"),
    [
        (Acked(status=204), "acked"),
        (Refused(status=502, errcode="M_CANARY", answer="canary"), "http_502"),
        (Unreachable(reason="timeout"), "timeout"),
    ],
)
def test_an_outcome_is_one_of_few_words_and_nothing_that_the_appservice_chose(
    counted: DeliveryMetrics, outcome: Outcome, word: str
) -> None:
    counted.attempted("bot", outcome)
    assert sample(counted, "appservice_bridge_attempts_total", outcome=word) == 1
    said: list[Metric] = list(counted.collect())
    assert "canary" not in repr(said).lower()
