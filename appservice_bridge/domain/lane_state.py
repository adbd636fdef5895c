"""One word for how a lane is, the same wherever operators look."""

from enum import StrEnum
from typing import Final

BEHIND_SECONDS: Final = 60.0  # waiting for longer than this is not what a lane that works does


class LaneState(StrEnum):
    """What an operator is told first of a lane; the first that holds, in this order.

    Attributes:
        NO_TRANSPORT: the configuration gives it none, so it has no lane, and needs none.
        UNREGISTERED: no worker was started with its registration; what waits stays.
        GOING_LIVE: facts of its users may still be left out by older DB transactions.
        DISCONNECTED: its appservice should come to us, and is not here.
        UNSERVED: no worker that is alive holds it.
        HALTED: its seal does not hold, and an operator must look.
        PAUSED: an operator said so, and must say when it goes on.
        FAILING: the last attempt failed; the next one comes by itself.
        BEHIND: it delivers, and not as fast as things come.
        DELIVERING: something waits.
        IDLE: nothing does.
    """

    NO_TRANSPORT = "no_transport"
    UNREGISTERED = "unregistered"
    GOING_LIVE = "going_live"
    DISCONNECTED = "disconnected"
    UNSERVED = "unserved"
    HALTED = "halted"
    PAUSED = "paused"
    FAILING = "failing"
    BEHIND = "behind"
    DELIVERING = "delivering"
    IDLE = "idle"

    @property
    def well(self) -> bool:
        """Whether nothing has to be done."""
        return self in {LaneState.NO_TRANSPORT, LaneState.DELIVERING, LaneState.IDLE}
