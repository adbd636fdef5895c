"""What is said of a lane: is it well, since when not, why, and what to do."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from appservice_bridge.delivery.diagnosis import BEHIND_SECONDS, State, diagnose
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
    for one in (lane(), lane(waiting=9, oldest_seconds=1.0), lane(dead_letters=3)):
        found = diagnose(one)
        assert (found.state, found.well) == (State.WELL, True)
        assert (found.why, found.mend, found.since) == (None, None, None)


@pytest.mark.parametrize(
    ("known", "state", "since"),
    [
        ({"registered": False}, State.NO_TRANSPORT, None),
        ({"live": False}, State.BEHIND, None),
        ({"worker": None, "left_alone_at": THEN}, State.FREE, THEN),
        ({"rest_seconds": float("inf"), "failing_since": THEN}, State.HALTED, THEN),
        ({"paused": True, "paused_at": THEN}, State.PAUSED, THEN),
        ({"failed_attempts": 2, "failing_since": THEN}, State.RESTING, THEN),
        (
            {"transport": Transport.POLL, "attempted_seconds": 900.0, "last_attempt_at": THEN},
            State.NO_TRANSPORT,
            THEN,
        ),
    ],
)
def test_what_is_not_well_says_so_since_when_why_and_what_to_do(
    known: dict[str, Any], state: State, since: datetime | None
) -> None:
    found = diagnose(lane(**known))
    assert (found.state, found.well, found.since) == (state, False, since)
    assert found.why
    assert found.mend


def test_who_lets_things_wait_for_long_is_behind_since_then() -> None:
    found = diagnose(lane(waiting=1, oldest_seconds=BEHIND_SECONDS + 3600))
    assert found.state is State.BEHIND
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
