"""The arithmetic of figures, and the shapes in which they are printed."""

import pytest

from appservice_bridge.bench.drain import rate
from appservice_bridge.bench.figures import Series, Side, amount, percentile, ratio
from appservice_bridge.bench.filling import MESSAGE_BYTES, item, user
from appservice_bridge.bench.receiver import Seen
from appservice_bridge.bench.report import target
from appservice_bridge.bench.scenario import MEMORY, Scenario
from appservice_bridge.bench.session import series, turned


async def _never(_stage: object) -> dict[str, float]:
    raise AssertionError


def test_a_summary_has_the_middle_the_spread_and_the_middle_of_the_rounds_ratios() -> None:
    one = Series(
        scenario="drain-1",
        unit="messages/s",
        values=(10.0, 90.0, 20.0),
        naive=(5.0, 10.0, 5.0),
        ceiling=(20.0, 100.0, 25.0),
    )
    assert one.summary().as_json() == {
        "scenario": "drain-1",
        "unit": "messages/s",
        "median": 20.0,
        "min": 10.0,
        "max": 90.0,
        "of_naive": 4.0,
        "of_ceiling": 0.8,
    }


def test_without_a_yardstick_there_is_no_ratio() -> None:
    of = Series(scenario="idle", unit="%", values=(0.5,)).summary()
    assert (of.of_naive, of.of_ceiling) == (None, None)
    assert ratio((1.0,), (0.0,)) is None


def test_a_yardstick_of_other_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="other rounds"):
        Series(scenario="live", unit="messages/s", values=(1.0, 2.0), naive=(1.0,))
    with pytest.raises(ValueError, match="never measured"):
        Series(scenario="live", unit="messages/s", values=())


@pytest.mark.parametrize(("percent", "expected"), [(50, 50.0), (99, 99.0), (100, 100.0), (1, 1.0)])
def test_a_percentile_is_the_nearest_rank(percent: float, expected: float) -> None:
    assert percentile([float(n) for n in range(100, 0, -1)], percent) == expected


def test_a_percentile_of_one_value_is_that_value() -> None:
    assert percentile([7.0], 99) == 7.0
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_a_rate_leaves_out_what_the_first_request_brought() -> None:
    seen = Seen(messages=300, requests=3, first_messages=100, first_ns=0, last_ns=2_000_000_000)
    assert rate(seen) == 100.0
    with pytest.raises(ValueError, match="too few"):
        rate(Seen(messages=100, requests=1, first_messages=100))


def test_no_side_is_always_first() -> None:
    sides = (Side.BRIDGE, Side.NAIVE, Side.CEILING)
    assert [turned(sides, number)[0] for number in range(4)] == [*sides, Side.BRIDGE]
    assert sorted(turned(sides, 2)) == sorted(sides)


def test_the_yardsticks_stand_beside_the_bridge_and_the_small_case_is_a_ratio() -> None:
    scenario = Scenario(
        name="many",
        about="",
        units={"": "messages/s", MEMORY: "MB"},
        sides={Side.BRIDGE: _never, Side.NAIVE: _never, Side.SMALL: _never},
    )
    found = series(
        scenario,
        {
            Side.BRIDGE: [{"": 90.0, MEMORY: 70.0}],
            Side.NAIVE: [{"": 30.0, MEMORY: 40.0}],
            Side.SMALL: [{"": 100.0, MEMORY: 60.0}],
        },
    )
    assert {one.scenario: (one.values, one.naive, one.unit) for one in found} == {
        "many": ((90.0,), (30.0,), "messages/s"),
        "many/small": ((100.0,), (), "messages/s"),
        "many/of-small": ((0.9,), (), "ratio"),
        "many/memory": ((70.0,), (), "MB"),
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [(40_820.4, "40,820"), (999.7, "1,000"), (183.4, "183"), (12.34, "12.3"), (0.79213, "0.792")],
)
def test_a_figure_is_shown_as_people_read_it(value: float, shown: str) -> None:
    assert amount(value) == shown


@pytest.mark.parametrize(
    ("scenario", "value", "shown"),
    [
        ("live", 30_000.0, "at least 30,000"),
        ("live", 16_141.0, "**missed: at least 30,000**"),
        ("latency/commit", 5.0, "at most 5"),
        ("latency/commit", 5.1, "**missed: at most 5**"),
        ("synapse/8-p99", 99.9, "under 100"),
        ("synapse/8-p99", 100.0, "**missed: under 100**"),
        ("idle/memory", 256.0, "**missed: under 256**"),
        ("idle/of-nobody", 1.0, ""),
    ],
)
def test_a_target_that_is_missed_is_marked(scenario: str, value: float, shown: str) -> None:
    assert target(Series(scenario=scenario, unit="", values=(value,)).summary()) == shown


def test_of_several_targets_those_are_marked_that_are_missed() -> None:
    one = Series(
        scenario="drain-64",
        unit="messages/s",
        values=(80_000.0,),
        naive=(20_000.0,),
        ceiling=(100_000.0,),
    )
    assert target(one.summary()) == (
        "at least 70,000; **missed: at least 5 of naive**; at least 0.7 of ceiling"
    )


def test_a_message_takes_one_kilobyte() -> None:
    assert len(item(user("as0000", 1))) == MESSAGE_BYTES
