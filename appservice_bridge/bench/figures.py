"""Figures over several rounds: their middle and spread, and how they compare with a yardstick."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Side(StrEnum):
    """Who is measured in a round.

    Attributes:
        BRIDGE: the bridge, as operators run it.
        NAIVE: the outbox that one would write first, see `yardsticks`.
        CEILING: the bare loop of range read, splice and PUT: nothing is written.
        SMALL: the bridge again, without what makes the scenario hard.
        NATIVE: the homeserver's own delivery, without a bridge.
    """

    BRIDGE = "bridge"
    NAIVE = "naive"
    CEILING = "ceiling"
    SMALL = "small"
    NATIVE = "native"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One figure as `--json` prints it.

    Attributes:
        scenario: its name; further figures of the same scenario have "/what" behind it.
        unit: "messages/s", "ms", "MB", "%", "ratio" and the like.
        of_naive: median over the rounds of bridge / naive; None: there is no such yardstick.
        of_ceiling: the same with the ceiling.
    """

    scenario: str
    unit: str
    median: float
    min: float
    max: float
    of_naive: float | None
    of_ceiling: float | None

    def as_json(self) -> dict[str, Any]:
        """With four digits that count."""
        return {
            name: _short(value) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One figure of every round; a yardstick's are of the same rounds, or there are none.

    Raises:
        ValueError: no round, or a yardstick with another number of them.
    """

    scenario: str
    unit: str
    values: tuple[float, ...]
    naive: tuple[float, ...] = ()
    ceiling: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"{self.scenario} was never measured")
        for yardstick in (self.naive, self.ceiling):
            if yardstick and len(yardstick) != len(self.values):
                raise ValueError(f"{self.scenario}: a yardstick of other rounds")

    def summary(self) -> Summary:
        """The middle, the spread, and the ratios."""
        return Summary(
            scenario=self.scenario,
            unit=self.unit,
            median=statistics.median(self.values),
            min=min(self.values),
            max=max(self.values),
            of_naive=ratio(self.values, self.naive),
            of_ceiling=ratio(self.values, self.ceiling),
        )


def ratio(values: Sequence[float], yardstick: Sequence[float]) -> float | None:
    """Median of the ratios of each round, so that a drift of the machine is in both."""
    if not yardstick or not all(yardstick):
        return None
    return statistics.median(own / other for own, other in zip(values, yardstick, strict=True))


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest rank: the least value that so many percent of all do not exceed.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(1, math.ceil(len(ordered) * percent / 100)) - 1]


def amount(value: float) -> str:
    """A figure as people read it, with the digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _short(value: float) -> float:
    return float(f"{value:.4g}")
