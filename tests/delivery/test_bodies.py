"""The room for bodies: what is new is cut smaller, what has its size waits."""

from appservice_bridge.delivery.bodies import LEAST_BODY_BYTES, SHARE, Bodies

FULL = 900_000


def test_while_there_is_room_a_body_is_as_large_as_it_may_be() -> None:
    bodies = Bodies(SHARE * FULL)
    assert bodies.cap(FULL) == FULL


def test_any_number_of_lanes_that_hang_stays_close_to_the_limit() -> None:
    bodies = Bodies(64 * FULL)
    for lane in range(1000):
        bodies.hold(lane, bodies.cap(FULL))
    assert bodies.total < 64 * FULL + 1000 * LEAST_BODY_BYTES
    assert bodies.cap(FULL) == LEAST_BODY_BYTES


def test_what_was_let_go_of_makes_room() -> None:
    bodies = Bodies(SHARE * FULL)
    bodies.hold("a", 3 * FULL)
    assert bodies.roomy
    bodies.hold("a", 4 * FULL)
    assert not bodies.roomy
    assert bodies.cap(FULL) == 4 * FULL // SHARE
    bodies.hold("a", 0)
    assert (bodies.total, bodies.cap(FULL)) == (0, FULL)


def test_what_a_lane_holds_is_counted_once() -> None:
    bodies = Bodies()
    bodies.hold("a", 10)
    bodies.hold("a", 30)
    assert bodies.total == 30


def test_what_was_sealed_before_waits_until_it_fits_but_for_one_that_is_alone() -> None:
    bodies = Bodies(100)
    assert bodies.fits("a", 200)
    bodies.hold("a", 60)
    assert bodies.fits("a", 200)  # its own
    assert bodies.fits("b", 40)
    assert not bodies.fits("b", 41)
