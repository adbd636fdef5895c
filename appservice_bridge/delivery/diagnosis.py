"""Whether an appservice is well, since when not, why, and what to do: one answer per lane."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from appservice_bridge.domain.lane_state import BEHIND_SECONDS, LaneState
from appservice_bridge.domain.transport import Transport
from appservice_bridge.storage.overview import LaneView


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What an operator must know of one appservice first.

    Attributes:
        since: when it became unwell, as far as that is known.
        why: one sentence; None where it is well.
        mend: what to do, one sentence.
    """

    state: LaneState
    since: datetime | None = None
    why: str | None = None
    mend: str | None = None

    @property
    def well(self) -> bool:
        """Whether nothing has to be done."""
        return self.state.well


def diagnose(lane: LaneView) -> Diagnosis:
    """What is wrong with a lane; the first that holds."""
    match state := lane.state:
        case LaneState.UNREGISTERED | LaneState.GOING_LIVE | LaneState.DISCONNECTED:
            return _not_attached(lane)
        case LaneState.UNSERVED:
            return Diagnosis(
                state=LaneState.UNSERVED,
                since=lane.left_alone_at,
                why="no worker that is alive serves it",
                mend="start `appservice-bridge run`; if one runs, its log says what is wrong",
            )
        case LaneState.HALTED | LaneState.PAUSED:
            return _standing_still(lane)
        case LaneState.FAILING:
            return _failing(lane)
        case LaneState.BEHIND:
            return _behind(lane)
        case LaneState.DELIVERING | LaneState.IDLE | LaneState.NO_TRANSPORT:
            return Diagnosis(state=state)


def _not_attached(lane: LaneView) -> Diagnosis:
    if not lane.registered:
        return Diagnosis(
            state=LaneState.UNREGISTERED,
            why="no worker has its registration, so nothing is sent; what waits stays",
            mend="put its registration back, or forget it with "
            f"`appservice-bridge registration remove {lane.appservice_id}`",
        )
    if not lane.live:
        return Diagnosis(
            state=LaneState.GOING_LIVE,
            why="it is new, and what was open in the homeserver's database when it came may be "
            "left out until that has ended",
            mend="wait; if it stays so, a DB transaction is open for long: "
            "`appservice-bridge doctor`",
        )
    how = "asks for its transactions" if lane.transport is Transport.POLL else "connects to us"
    return Diagnosis(
        state=LaneState.DISCONNECTED,
        since=lane.last_attempt_at,
        why=f"it is one that {how}, and it is not here",
        mend="start the appservice; if it runs, its log says why it does not reach the relay",
    )


def _standing_still(lane: LaneView) -> Diagnosis:
    if lane.state is LaneState.PAUSED:
        return Diagnosis(
            state=LaneState.PAUSED,
            since=lane.paused_at,
            why="an operator paused it",
            mend="resume it",
        )
    return Diagnosis(
        state=LaneState.HALTED,
        since=lane.failing_since or lane.last_attempt_at,
        why="what is stored is not what was sealed, so nothing is sent",
        mend="look for who changed the bridge's tables, then retry",
    )


def _failing(lane: LaneView) -> Diagnosis:
    times = "once" if lane.failed_attempts == 1 else f"{lane.failed_attempts} times in a row"
    return Diagnosis(
        state=LaneState.FAILING,
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


def _behind(lane: LaneView) -> Diagnosis:
    oldest = lane.oldest_seconds or 0.0
    return Diagnosis(
        state=LaneState.BEHIND,
        since=datetime.now(UTC) - timedelta(seconds=oldest - BEHIND_SECONDS),
        why=f"the oldest of what waits came {oldest:.0f} s ago",
        mend="if the backlog shrinks, wait; if not, the appservice answers too slowly",
    )
