"""What Prometheus is given: one sheet for each scrape, beside what is counted as it happens."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
PREFIX: Final = "appservice_bridge_"


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric: its name without the prefix, what it says, and its labels.

    Attributes:
        counter: it only rises; its samples end in `_total`.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()
    counter: bool = False

    def family(self) -> GaugeMetricFamily | CounterMetricFamily:
        """A new family without samples."""
        of = CounterMetricFamily if self.counter else GaugeMetricFamily
        return of(PREFIX + self.name, self.help, labels=self.labels)


class Sheet(Collector):
    """Samples of one scrape, in the order in which their figures were first named."""

    def __init__(self) -> None:
        self._families: dict[Figure, GaugeMetricFamily | CounterMetricFamily] = {}

    def add(self, figure: Figure, value: float | None, *labels: str) -> None:
        """One sample; None: there is nothing to say, and no sample."""
        family = self._families.get(figure)
        if family is None:
            family = self._families[figure] = figure.family()
        if value is not None:
            family.add_metric(labels, value)

    def collect(self) -> Iterator[Metric]:
        """Every family that was named."""
        yield from self._families.values()


class Exposition:
    """A registry of the bridge's own: figures, what counts by itself, and the process."""

    def __init__(self, *collectors: Collector) -> None:
        self._always = (*collectors, ProcessCollector(registry=None), PlatformCollector(None))

    def written(self, sheet: Sheet) -> bytes:
        """The text of one scrape; it takes a while, and may be made in another thread."""
        registry = CollectorRegistry(auto_describe=False)
        for collector in (sheet, *self._always):
            registry.register(collector)
        return generate_latest(registry)
