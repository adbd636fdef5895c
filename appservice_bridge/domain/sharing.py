"""How lanes are shared among workers, with nobody who decides for all."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Who holds which lanes; every worker that looks sees the same.

    Attributes:
        lanes: all that are shared.
        held: those of each worker that is alive, the one that began first before the others.
    """

    lanes: frozenset[str]
    held: Mapping[UUID, frozenset[str]]

    def share(self, worker_id: UUID) -> int:
        """How many lanes are for this worker; 0 for one that is not alive.

        All shares together are all lanes: whatever one has too many of, others lack.
        """
        if worker_id not in self.held:
            return 0
        each, left_over = divmod(len(self.lanes), len(self.held))
        return each + (list(self.held).index(worker_id) < left_over)

    def free(self) -> frozenset[str]:
        """Lanes of nobody who is alive."""
        return self.lanes.difference(*self.held.values())
