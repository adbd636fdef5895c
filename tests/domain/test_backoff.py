"""Rests double up to a ceiling; an appservice may ask for another, within bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appservice_bridge.domain.backoff import Backoff
from tests.support.properties import UNHURRIED

BACKOFF = Backoff(first_seconds=1.0, ceiling_seconds=60.0)
ATTEMPTS = st.integers(min_value=1, max_value=10**9)


def test_rests_double_from_the_first_up_to_the_ceiling() -> None:
    rests = [BACKOFF.rest_after(attempt) for attempt in range(1, 9)]
    assert rests == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize("attempt", [1, 3, 10**9])
def test_jitter_shortens_a_rest_by_a_quarter_at_most(attempt: int) -> None:
    whole = BACKOFF.rest_after(attempt)
    rests = [BACKOFF.rest(attempt) for _ in range(500)]
    assert 0.75 * whole <= min(rests) < max(rests) <= whole


def test_two_lanes_do_not_come_back_at_the_same_moment() -> None:
    assert len({BACKOFF.rest(5) for _ in range(20)}) > 1


@UNHURRIED
@given(ATTEMPTS, st.floats(allow_nan=False))
def test_what_an_appservice_asks_for_ends_no_rest_early_and_blocks_no_lane(
    attempt: int, asked: float
) -> None:
    rest = BACKOFF.rest(attempt, retry_after_seconds=asked)
    assert BACKOFF.first_seconds <= rest <= BACKOFF.ceiling_seconds
    if BACKOFF.first_seconds <= asked <= BACKOFF.ceiling_seconds:
        assert rest == asked


@pytest.mark.parametrize("bounds", [(0, 1), (-1, 1), (2, 1), (float("nan"), 1), (1, float("nan"))])
def test_bounds_out_of_order_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="first"):
        Backoff(first_seconds=bounds[0], ceiling_seconds=bounds[1])
