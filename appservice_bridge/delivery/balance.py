"""What one worker takes and gives up, so that each gets its share and none changes for nothing."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from appservice_bridge.domain.sharing import Standing

PATIENCE_SECONDS: Final = 2.0  # for which a free lane is left to a worker that lacks some


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What to do about the lanes now.

    Attributes:
        claim: free lanes, and this worker's own that it does not know of.
        most: so many of them at most.
        give_up: how many of the lanes held are for others.
        lost: lanes that this worker serves and does not hold any more.
    """

    claim: frozenset[str] = frozenset()
    most: int = 0
    give_up: int = 0
    lost: frozenset[str] = frozenset()


class Balance:
    """One worker's part in sharing the lanes.

    It takes free lanes up to its share and gives up what is above. What others lack and do not
    take (one that is stopping does not) it takes as well, and then keeps until workers come or go:
    so a lane never goes round. Nothing of this is needed for correctness: leases are fenced.
    """

    def __init__(self, worker_id: UUID) -> None:
        self._worker_id = worker_id
        self._free_since: dict[str, float] = {}
        self._content_among: frozenset[UUID] | None = None

    def move(self, standing: Standing, *, known: Collection[str], now: float) -> Move:
        """Decide by what the database says; `known` are the lanes that this worker serves."""
        mine = standing.held.get(self._worker_id, frozenset())
        unheard = mine.difference(known)
        lost = standing.lanes.intersection(known) - mine
        free = standing.free().difference(known)
        self._free_since = {one: self._free_since.get(one, now) for one in free}
        above = len(mine) - standing.share(self._worker_id)
        if above < 0:
            return Move(claim=free | unheard, most=len(unheard) - above, lost=lost)
        left = {one for one in free if now - self._free_since[one] >= PATIENCE_SECONDS}
        if left:
            self._content_among = frozenset(standing.held)
        kept = self._content_among == frozenset(standing.held)
        claim = unheard | left
        return Move(claim=claim, most=len(claim), give_up=0 if kept else above, lost=lost)
