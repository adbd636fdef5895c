"""The last hour of every lane: bounded, and honest where it does not know."""

import tracemalloc

from appservice_bridge.delivery.history import EVERY_SECONDS, MOST_LANES, SLOTS, History
from appservice_bridge.storage.samples import Sample

FIRST = 1_700_000_000.0


def sample(
    tick: float, *, id_: str = "bot", waiting: int = 0, delivered: int = 0, failed: int = 0
) -> Sample:
    return Sample(
        appservice_id=id_,
        at=FIRST + tick * EVERY_SECONDS,
        waiting=waiting,
        delivered=delivered,
        failed_attempts=failed,
        oldest_seconds=2.5 if waiting else None,
    )


def test_a_rate_is_known_from_the_second_look_on() -> None:
    history = History()
    history.add([sample(0, delivered=1000, waiting=7)])
    assert history.rates() == {}
    history.add([sample(1, delivered=1050, failed=2)])
    first, second = history.points("bot", minutes=60)
    assert (first.ts, first.backlog, first.oldest_seconds) == (FIRST * 1000, 7, 2.5)
    assert (first.acked_per_second, first.failed_per_second) == (None, None)
    assert (second.ts - first.ts, second.backlog, second.oldest_seconds) == (10_000, 0, 0)
    assert (second.acked_per_second, second.failed_per_second) == (5, 0.2)
    assert history.rates() == {"bot": 5}


def test_the_rate_is_that_of_the_last_minute() -> None:
    history = History()
    for tick in range(20):
        history.add([sample(tick, delivered=100 * min(tick, 10))])
    assert history.rates() == {"bot": 0}
    assert max(one.acked_per_second or 0 for one in history.points("bot", minutes=60)) == 10


def test_attempts_that_fail_after_an_ack_are_counted_from_the_ack() -> None:
    history = History()
    for tick, failed in enumerate((0, 4, 1)):
        history.add([sample(tick, failed=failed)])
    rates = [one.failed_per_second for one in history.points("bot", minutes=60)]
    assert rates == [None, 0.4, 0.1]


def test_all_together_are_the_sum_and_the_oldest() -> None:
    history = History()
    for tick in range(2):
        history.add(
            [
                sample(tick, id_=id_, waiting=n, delivered=tick * 50)
                for id_, n in (("a", 1), ("b", 2))
            ]
        )
    last = history.points(None, minutes=60)[-1]
    assert (last.backlog, last.acked_per_second, last.oldest_seconds) == (3, 10, 2.5)


def test_it_holds_an_hour_and_answers_for_fewer_minutes() -> None:
    history = History()
    for tick in range(SLOTS + 100):
        history.add([sample(tick, waiting=tick)])
    points = history.points("bot", minutes=60)
    assert len(points) == SLOTS
    assert [one.backlog for one in points] == list(range(100, SLOTS + 100))
    assert [one.backlog for one in history.points("bot", minutes=1)] == [
        *range(SLOTS + 94, SLOTS + 100)
    ]


def test_a_look_right_after_another_as_two_workers_of_a_reload_take_it_is_left_out() -> None:
    history = History()
    for tick in (0, 0.1, 1, 1.2):
        history.add([sample(tick)])
    assert len(history.points(None, minutes=60)) == 2


def test_nobody_saw_it_leaves_a_gap_and_who_is_gone_for_an_hour_is_forgotten() -> None:
    history = History()
    history.add([sample(0), sample(0, id_="other")])
    history.add([sample(1, id_="other")])
    history.add([sample(2), sample(2, id_="other")])
    assert len(history.points("bot", minutes=60)) == 2
    for tick in range(3, SLOTS + 4):
        history.add([sample(tick, id_="other")])
    assert history.points("bot", minutes=60) == []
    assert "bot" not in history._lines


def test_its_memory_is_bounded_however_many_appservices_there_are() -> None:
    many = [sample(0, id_=f"bot{n}") for n in range(MOST_LANES + 500)]
    history = History()
    tracemalloc.start()
    history.add(many)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(history._lines) == MOST_LANES
    assert used < 10_000 * MOST_LANES
    assert history.points(f"bot{MOST_LANES}", minutes=60) == []
    assert history.points(None, minutes=60)[0].backlog == 0
