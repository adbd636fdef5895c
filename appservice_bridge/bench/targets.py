"""What the figures should be."""

import operator
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from appservice_bridge.bench.figures import Side, Summary, amount


class Bound(StrEnum):
    """On which side of its target a figure should be."""

    LEAST = "at least"
    MOST = "at most"
    UNDER = "under"


_HOLDS: Final[Mapping[Bound, Callable[[float, float], bool]]] = {
    Bound.LEAST: operator.ge,
    Bound.MOST: operator.le,
    Bound.UNDER: operator.lt,
}


class Target(NamedTuple):
    """One thing that a figure should be.

    Attributes:
        of: the yardstick to which its ratio is meant; None: the median itself.
    """

    bound: Bound
    value: float
    of: Side | None = None

    def __str__(self) -> str:
        beside = "" if self.of is None else f" of {self.of}"
        return f"{self.bound} {amount(self.value)}{beside}"

    def is_missed_by(self, summary: Summary) -> bool:
        """Whether it was measured, and is on the other side."""
        match self.of:
            case Side.NAIVE:
                found = summary.of_naive
            case Side.CEILING:
                found = summary.of_ceiling
            case _:
                found = summary.median
        return found is not None and not _HOLDS[self.bound](found, self.value)


_BESIDE: Final = (Target(Bound.LEAST, 5, Side.NAIVE), Target(Bound.LEAST, 0.7, Side.CEILING))
_MEMORY: Final = (Target(Bound.UNDER, 256),)

_TARGETS: Final[Mapping[str, Sequence[Target]]] = {
    "drain-1": (Target(Bound.LEAST, 40_000), *_BESIDE),
    "drain-64": (Target(Bound.LEAST, 70_000), *_BESIDE),
    "drain-1000/of-small": (Target(Bound.LEAST, 0.9),),
    "live": (Target(Bound.LEAST, 30_000),),
    "latency/commit": (Target(Bound.MOST, 5),),
    "latency/commit-p99": (Target(Bound.MOST, 20),),
    "million-users/of-small": (Target(Bound.LEAST, 0.9),),
    "waiting-10m/of-small": (Target(Bound.LEAST, 0.9),),
    "dead-100/of-small": (Target(Bound.MOST, 1.3),),
    "dead-100/p99-of-small": (Target(Bound.MOST, 2),),
    "hanging-1000": _MEMORY,
    "idle": (Target(Bound.UNDER, 1),),
    "trigger": (Target(Bound.LEAST, 0.75),),
    "trigger/unmatched": (Target(Bound.LEAST, 0.85),),
    "synapse/latency-of-native": (Target(Bound.UNDER, 1),),
    "synapse/8-of-native": (Target(Bound.LEAST, 1),),
    "synapse/8-delivered": (Target(Bound.LEAST, 100),),
    "synapse/8-p99": (Target(Bound.UNDER, 100),),
}


def targets(figure: str) -> Sequence[Target]:
    """Those of a figure, by its name; of most there is none."""
    return _MEMORY if figure.endswith("/memory") else _TARGETS.get(figure, ())
