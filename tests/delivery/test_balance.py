"""Workers that look in any order come to rest with their shares, and then nothing moves."""

from collections.abc import Mapping
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from appservice_bridge.delivery.balance import PATIENCE_SECONDS, Balance
from appservice_bridge.domain.sharing import Standing
from tests.support.properties import UNHURRIED

LANES = frozenset(f"as{n}" for n in range(11))
A, B, C = (UUID(int=n) for n in range(3))


class Workers:
    """Workers in one table of lanes; whoever is idle looks and takes nothing."""

    def __init__(self, held: Mapping[UUID, frozenset[str]], *, idle: frozenset[UUID]) -> None:
        self.held = dict(held)
        self.idle = idle
        self.balances = {one: Balance(one) for one in held}
        self.now = 0.0
        self.moves = 0

    def look(self, one: UUID) -> None:
        self.now += 0.1
        standing = Standing(lanes=LANES, held=dict(self.held))
        mine = self.held[one]
        move = self.balances[one].move(standing, known=mine, now=self.now)
        if one in self.idle:
            return
        claimed = frozenset(sorted(move.claim)[: move.most])
        given_up = frozenset(sorted(mine)[: max(move.give_up, 0)])
        self.moves += len(claimed) + len(given_up)
        self.held[one] = (mine | claimed) - given_up


def settle(workers: Workers, order: list[UUID]) -> None:
    for _ in range(40):
        for one in order:
            workers.look(one)


orders = st.permutations([A, B, C])


@UNHURRIED
@given(orders, st.lists(st.sampled_from([A, B, C, None]), min_size=11, max_size=11))
def test_each_gets_its_share_and_then_nothing_moves(
    order: list[UUID], holders: list[UUID | None]
) -> None:
    pairs = list(zip(sorted(LANES), holders, strict=True))
    held = {one: frozenset(lane for lane, by in pairs if by == one) for one in (A, B, C)}
    workers = Workers(held, idle=frozenset())
    settle(workers, order)
    assert [len(lanes) for lanes in workers.held.values()] == [4, 4, 3]
    assert frozenset().union(*workers.held.values()) == LANES
    workers.moves = 0
    settle(workers, order)
    assert workers.moves == 0


@UNHURRIED
@given(orders, st.sampled_from([A, B, C]))
def test_what_one_that_takes_nothing_lacks_is_taken_by_others_and_does_not_go_round(
    order: list[UUID], idle: UUID
) -> None:
    held: dict[UUID, frozenset[str]] = {one: frozenset() for one in (A, B, C)}
    workers = Workers(held, idle=frozenset([idle]))
    settle(workers, order)
    assert frozenset().union(*workers.held.values()) == LANES
    workers.moves = 0
    settle(workers, order)
    assert workers.moves == 0


def test_who_took_what_nobody_wanted_shares_again_when_a_worker_comes() -> None:
    workers = Workers({A: frozenset(), B: frozenset()}, idle=frozenset([B]))
    settle(workers, [A, B])
    assert workers.held[A] == LANES
    workers.held[C] = frozenset()
    workers.balances[C] = Balance(C)
    settle(workers, [A, B, C])
    assert len(workers.held[C]) >= 3


def test_a_free_lane_is_left_to_who_lacks_it_for_a_while() -> None:
    standing = Standing(lanes=frozenset({"a", "b"}), held={A: frozenset({"a"}), B: frozenset()})
    balance = Balance(A)
    assert not balance.move(standing, known={"a"}, now=10).claim
    late = 10 + PATIENCE_SECONDS
    assert not balance.move(standing, known={"a"}, now=late - 0.1).claim
    assert balance.move(standing, known={"a"}, now=late).claim == {"b"}


def test_a_lane_that_is_served_and_held_by_another_is_lost() -> None:
    standing = Standing(lanes=frozenset({"a"}), held={A: frozenset(), B: frozenset({"a"})})
    assert Balance(A).move(standing, known={"a"}, now=0).lost == {"a"}
    assert not Balance(B).move(standing, known={"a"}, now=0).lost


def test_a_lane_held_and_not_known_is_claimed_again_whatever_the_share() -> None:
    standing = Standing(lanes=frozenset({"a"}), held={B: frozenset(), A: frozenset({"a"})})
    assert Balance(A).move(standing, known=set(), now=0).claim == {"a"}
