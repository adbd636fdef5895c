"""How much of the homeserver's disk the bridge may take, and how full that is."""

from dataclasses import dataclass
from typing import Final

GIB: Final = 2**30
ALERTS: Final = (0.5, 0.8, 1.0)
"""Parts of the budget at which an operator is told, ascending."""

_CLEARED: Final = 0.9  # of a limit: below it, what was over the limit has room again


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What the bridge may take in the homeserver's database.

    Attributes:
        total_bytes: all tables of the bridge, as they lie on the disk.
        appservice_bytes: payloads that wait for one appservice; at most `total_bytes`.
    """

    total_bytes: int = 10 * GIB
    appservice_bytes: int = 2 * GIB

    def is_used_up(self, used_bytes: int, *, was_used_up: bool) -> bool:
        """Whether nothing more is stored but keys; once used up, until a tenth is free again."""
        part = _CLEARED if was_used_up else 1.0
        return used_bytes >= part * self.total_bytes

    @property
    def appservice_cleared_bytes(self) -> int:
        """Below it, an appservice that was over its limit is worth a wake of the homeserver."""
        return int(_CLEARED * self.appservice_bytes)

    def alert_level(self, used_bytes: int, *, before: int) -> int:
        """How many of `ALERTS` are reached; one is left only when a tenth of it is free again."""
        reached = sum(used_bytes >= part * self.total_bytes for part in ALERTS)
        kept = sum(used_bytes >= _CLEARED * part * self.total_bytes for part in ALERTS)
        return max(reached, min(before, kept))
