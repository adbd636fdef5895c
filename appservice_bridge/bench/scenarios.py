"""All scenarios, in the order in which they are measured."""

from collections.abc import Sequence
from typing import Final

from appservice_bridge.bench import (
    beside_synapse,
    catching_up,
    drain,
    latency,
    live,
    masses,
    neighbours,
    relaying,
    trigger,
)
from appservice_bridge.bench.scenario import Scenario
from appservice_bridge.domain.errors import BridgeError

ALL: Final[tuple[Scenario, ...]] = (
    *drain.SCENARIOS,
    *live.SCENARIOS,
    *latency.SCENARIOS,
    *catching_up.SCENARIOS,
    *masses.SCENARIOS,
    *neighbours.SCENARIOS,
    *relaying.SCENARIOS,
    *trigger.SCENARIOS,
    *beside_synapse.SCENARIOS,
)


class UnknownScenarioError(BridgeError):
    """Nothing is called so; ask for one of those that the text names."""

    def __init__(self, name: str) -> None:
        known = ", ".join(scenario.name for scenario in ALL)
        super().__init__(f"no scenario {name}; there are {known}")
        self.name = name


def chosen(names: Sequence[str], *, quick: bool) -> list[Scenario]:
    """Those that are named, once each and in our order; else all, or those of --quick.

    Raises:
        UnknownScenarioError: a name is nobody's.
    """
    for name in names:
        if name not in {scenario.name for scenario in ALL}:
            raise UnknownScenarioError(name)
    if names:
        return [scenario for scenario in ALL if scenario.name in names]
    return [scenario for scenario in ALL if scenario.quick or not quick]
