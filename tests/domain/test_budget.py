"""When the budget counts as used up, and when an operator is told."""

from appservice_bridge.domain.budget import Budget

BUDGET = Budget(total_bytes=1000, appservice_bytes=500)


def test_what_was_used_up_has_room_again_when_a_tenth_is_free() -> None:
    assert not BUDGET.is_used_up(999, was_used_up=False)
    assert BUDGET.is_used_up(1000, was_used_up=False)
    assert BUDGET.is_used_up(900, was_used_up=True)
    assert not BUDGET.is_used_up(899, was_used_up=True)


def test_each_alert_is_reached_once_until_a_tenth_of_it_is_free_again() -> None:
    level, seen = 0, []
    for used in (0, 499, 500, 480, 510, 451, 449, 800, 1000, 960, 1100, 899, 719, 0):
        level = BUDGET.alert_level(used, before=level)
        seen.append(level)
    assert seen == [0, 0, 1, 1, 1, 1, 0, 2, 3, 3, 3, 2, 1, 0]
