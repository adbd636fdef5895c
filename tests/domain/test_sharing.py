"""Shares of the lanes follow from who is alive, alone."""

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from appservice_bridge.domain.sharing import Standing


def standing(lanes: int, workers: int) -> Standing:
    names = frozenset(f"as{n}" for n in range(lanes))
    return Standing(lanes=names, held={UUID(int=n): frozenset() for n in range(workers)})


@given(st.integers(0, 60), st.integers(1, 7))
def test_shares_are_all_lanes_together_and_differ_by_one_at_most(lanes: int, workers: int) -> None:
    one = standing(lanes, workers)
    shares = [one.share(worker_id) for worker_id in one.held]
    assert sum(shares) == lanes
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True)


def test_who_is_not_alive_has_no_share() -> None:
    assert standing(4, 2).share(UUID(int=9)) == 0
