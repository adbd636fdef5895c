"""What is said of a lane: is it well, since when not, why, and what to do."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from appservice_bridge.delivery.diagnosis import diagnose
from appservice_bridge.domain.lane_state import BEHIND_SECONDS, LaneState
from appservice_bridge.domain.transport import Transport
from appservice_bridge.storage.overview import LaneView

THEN: Final = datetime(2026, 1, 2, tzinfo=UTC)


def lane(**known: Any) -> LaneView:
    """One that is well and has nothing to do, but for what is said."""
    idle: dict[str, Any] = dict.fromkeys(LaneView.__slots__) | {
        "appservice_id": "bot",
        "waiting": 0,
        "device_updates": 0,
        "rest_seconds": 0.0,
        "failed_attempts": 0,
        "paused": False,
        "registered": True,
        "live": True,
        "worker": "here:1",
        "dead_letters": 0,
        "transport": Transport.HTTP,
    }
    return LaneView(**idle | known)


def test_what_has_nothing_to_do_or_delivers_is_well_and_nothing_is_to_be_done() -> None:
    for one, state in (
        (lane(), LaneState.IDLE),
        (lane(waiting=9, oldest_seconds=1.0), LaneState.DELIVERING),
        (lane(dead_letters=3), LaneState.IDLE),
    ):
        found = diagnose(one)
        assert (found.state, found.well) == (state, True)
        assert (found.why, found.mend, found.since) == (None, None, None)


@pytest.mark.parametrize(
    ("known", "state", "since"),
    [
        ({"registered": False}, LaneState.UNREGISTERED, None),
        ({"live": False}, LaneState.GOING_LIVE, None),
        ({"worker": None, "left_alone_at": THEN}, LaneState.UNSERVED, THEN),
        ({"rest_seconds": float("inf"), "failing_since": THEN}, LaneState.HALTED, THEN),
        ({"paused": True, "paused_at": THEN}, LaneState.PAUSED, THEN),
        ({"failed_attempts": 2, "failing_since": THEN}, LaneState.FAILING, THEN),
        (
            {"transport": Transport.POLL, "attempted_seconds": 900.0, "last_attempt_at": THEN},
            LaneState.DISCONNECTED,
            THEN,
        ),
    ],
)
def test_what_is_not_well_says_so_since_when_why_and_what_to_do(
    known: dict[str, Any], state: LaneState, since: datetime | None
) -> None:
    found = diagnose(lane(**known))
    assert found.state is lane(**known).state is state
    assert (found.well, found.since) == (False, since)
    assert found.why
    assert found.mend


def test_who_lets_things_wait_for_long_is_behind_since_then() -> None:
    found = diagnose(lane(waiting=1, oldest_seconds=BEHIND_SECONDS + 3600))
    assert found.state is LaneState.BEHIND
    assert found.since is not None
    assert timedelta(hours=1) <= datetime.now(UTC) - found.since < timedelta(hours=2)


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (401, "hs_token"),
        (404, "url"),
        (301, "redirect"),
        (429, "rest"),
        (500, "log"),
        (None, "ping"),
    ],
)
def test_what_to_do_depends_on_the_answer(status: int | None, hint: str) -> None:
    found = diagnose(lane(failed_attempts=1, last_status=status, last_outcome="no"))
    assert hint in str(found.mend)
