"""What a scenario is: which figures it has, and how each side is measured once."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from appservice_bridge.bench.figures import Side
from appservice_bridge.bench.stage import Stage

Figures: TypeAlias = Mapping[str, float]
"""By what is behind the scenario's name; the main one is under ""."""

Measure: TypeAlias = Callable[[Stage], Awaitable[Figures]]

MEMORY: Final = "memory"
RATE: Final = {"": "messages/s", MEMORY: "MB"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One thing that is measured.

    Attributes:
        units: of each figure; a side may leave some out.
        sides: how each is measured; the bridge is always among them.
        quick: --quick measures it unless scenarios are named.
        single: one round is enough, for it takes long.
        free_bytes: of disk that it needs.
    """

    name: str
    about: str
    units: Mapping[str, str]
    sides: Mapping[Side, Measure]
    quick: bool = False
    single: bool = False
    free_bytes: int = 0

    def figure_name(self, key: str) -> str:
        """How a figure is called in tables and in JSON."""
        return f"{self.name}/{key}" if key else self.name
