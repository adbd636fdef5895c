"""Whether an appservice is well, since when not, why, and what to do: one answer per lane."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from appservice_bridge.domain.transport import Transport
from appservice_bridge.storage.overview import LaneCondition, LaneView

BEHIND_SECONDS: Final = 60.0  # waiting for longer than this is not what a lane that works does


class State(StrEnum):
    """One word for an appservice; see `LaneCondition` for how lanes are told apart.

    Attributes:
        WELL: what comes is delivered.
        BEHIND: it is delivered, or about to be, and not as fast as it comes.
        RESTING: the last attempt failed, and the next one comes by itself.
        PAUSED: by an operator.
        HALTED: by a seal that does not hold.
        FREE: no worker that is alive holds its lane.
        NO_TRANSPORT: there is no way to it now, and maybe none is wanted.
    """

    WELL = "well"
    BEHIND = "behind"
    RESTING = "resting"
    PAUSED = "paused"
    HALTED = "halted"
    FREE = "free"
    NO_TRANSPORT = "no_transport"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What an operator must know of one appservice first.

    Attributes:
        since: when it became unwell, as far as that is known.
        why: one sentence; None where it is well.
        mend: what to do, one sentence.
    """

    state: State
    since: datetime | None = None
    why: str | None = None
    mend: str | None = None

    @property
    def well(self) -> bool:
        """Whether nothing has to be done."""
        return self.state is State.WELL


def diagnose(lane: LaneView) -> Diagnosis:
    """What is wrong with a lane; the first that holds."""
    match lane.state:
        case LaneCondition.UNREGISTERED | LaneCondition.GOING_LIVE | LaneCondition.DISCONNECTED:
            return _not_attached(lane)
        case LaneCondition.UNSERVED:
            return Diagnosis(
                state=State.FREE,
                since=lane.left_alone_at,
                why="no worker that is alive serves it",
                mend="start `appservice-bridge run`; if one runs, its log says what is wrong",
            )
        case LaneCondition.HALTED | LaneCondition.PAUSED:
            return _standing_still(lane)
        case LaneCondition.FAILING:
            return _failing(lane)
        case LaneCondition.DELIVERING | LaneCondition.IDLE:
            return _delivering(lane)


def _not_attached(lane: LaneView) -> Diagnosis:
    if not lane.registered:
        return Diagnosis(
            state=State.NO_TRANSPORT,
            why="no worker has its registration, so nothing is sent; what waits stays",
            mend="put its registration back, or forget it with "
            f"`appservice-bridge registration remove {lane.appservice_id}`",
        )
    if not lane.live:
        return Diagnosis(
            state=State.BEHIND,
            why="it is new, and what was open in the homeserver's database when it came may be "
            "left out until that has ended",
            mend="wait; if it stays so, a DB transaction is open for long: "
            "`appservice-bridge doctor`",
        )
    how = "asks for its transactions" if lane.transport is Transport.POLL else "connects to us"
    return Diagnosis(
        state=State.NO_TRANSPORT,
        since=lane.last_attempt_at,
        why=f"it is one that {how}, and it is not here",
        mend="start the appservice; if it runs, its log says why it does not reach the relay",
    )


def _standing_still(lane: LaneView) -> Diagnosis:
    if lane.state is LaneCondition.PAUSED:
        return Diagnosis(
            state=State.PAUSED,
            since=lane.paused_at,
            why="an operator paused it",
            mend="resume it",
        )
    return Diagnosis(
        state=State.HALTED,
        since=lane.failing_since or lane.last_attempt_at,
        why="what is stored is not what was sealed, so nothing is sent",
        mend="look for who changed the bridge's tables, then retry",
    )


def _failing(lane: LaneView) -> Diagnosis:
    times = "once" if lane.failed_attempts == 1 else f"{lane.failed_attempts} times in a row"
    return Diagnosis(
        state=State.RESTING,
        since=lane.failing_since,
        why=f"it did not take a transaction {times}; the last outcome was {lane.last_outcome}",
        mend=_mend(lane),
    )


def _mend(lane: LaneView) -> str:
    match lane.last_status:
        case 401 | 403:
            return "it does not know the hs_token: both sides need the same registration"
        case 404 | 405:
            return "it answers, and knows no such path: does the url lead to the appservice?"
        case 429:
            return "it asks for a rest; nothing has to be done unless it lasts"
        case status if status is not None and 300 <= status < 400:
            return "it redirects, and no redirect is followed: set url to where it leads"
        case status if status is not None:
            return "it answers, and refuses: its own log says why; then retry"
        case None:
            return "start it, or look at what is between; ping tells whether it can be reached"


def _delivering(lane: LaneView) -> Diagnosis:
    oldest = lane.oldest_seconds
    if oldest is None or oldest < BEHIND_SECONDS:
        return Diagnosis(state=State.WELL)
    return Diagnosis(
        state=State.BEHIND,
        since=datetime.now(UTC) - timedelta(seconds=oldest - BEHIND_SECONDS),
        why=f"the oldest of what waits came {oldest:.0f} s ago",
        mend="if the backlog shrinks, wait; if not, the appservice answers too slowly",
    )
