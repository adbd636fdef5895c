"""The room for bodies: what is new is cut smaller or waits in line, what has its size waits."""

import asyncio

import pytest

from appservice_bridge.delivery import bodies as module
from appservice_bridge.delivery.bodies import LEAST_BODY_BYTES, SHARE, Bodies

FULL = 900_000


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 60.0)


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


def full() -> Bodies:
    """Room for one body of `FULL`, which "a" holds."""
    bodies = Bodies(SHARE * FULL + FULL - 1)
    bodies.hold("a", FULL)
    return bodies


async def settled() -> None:
    """Everyone who could go on has."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_waits_for_room_gets_it_in_the_order_of_the_line() -> None:
    bodies = full()
    waiting = [asyncio.create_task(bodies.room(whose, FULL)) for whose in ("b", "c")]
    await settled()
    assert not any(task.done() for task in waiting)
    bodies.hold("a", 0)
    assert await waiting[0]
    assert bodies.total == FULL
    await settled()
    assert not waiting[1].done()
    bodies.hold("b", 7)  # it came out smaller
    assert await waiting[1]
    assert bodies.total == FULL + 7


async def test_what_is_held_already_stays_held_beside_what_is_reserved() -> None:
    bodies = Bodies(3 * SHARE * FULL)
    bodies.hold("a", 10)
    assert await bodies.room("a", FULL)
    assert bodies.total == 10 + FULL


async def test_where_the_line_stands_still_nobody_waits_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.01)
    bodies = full()
    waiting = [asyncio.create_task(bodies.room(whose, FULL)) for whose in ("b", "c")]
    assert await asyncio.gather(*waiting) == [False, False]
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 60.0)
    assert not await bodies.room("d", FULL)
    assert bodies.total == FULL
    monkeypatch.setattr(bodies, "_crowded_until", 0.0)
    bodies.hold("a", 0)
    assert await bodies.room("d", FULL)


async def test_who_gave_up_waiting_takes_no_room_and_keeps_nobody_from_it() -> None:
    bodies = full()
    gone = asyncio.create_task(bodies.room("b", FULL))
    late = asyncio.create_task(bodies.room("c", FULL))
    await settled()
    gone.cancel()
    await settled()
    bodies.hold("a", 0)
    assert await late
    assert bodies.total == FULL
