"""The short form of `make faults`, and that it fails where a promise is broken."""

import asyncio
from dataclasses import replace

import pytest

from tests.faults.__main__ import everything, run
from tests.faults.playing import play
from tests.faults.report import sigkills, table
from tests.faults.scenarios import SCENARIOS


@pytest.mark.timeout(900)
def test_no_fault_of_the_short_form_loses_doubles_reorders_or_alters_anything() -> None:
    rows = asyncio.run(run(everything(short=True), short=True, seed=1))
    shown = table(rows) + "".join(f"\n{row.failed} {row.verdict.examples}" for row in rows)
    assert all(row.clean for row in rows), shown
    assert all(row.verdict.facts > 0 for row in rows if row.not_run is None), shown
    assert sigkills(rows) > 15, shown


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("broken", "number"),
    [
        ("ack-first", "lost"),
        ("new-id", "doubled"),
        ("new-bytes", "altered"),
        ("late", "reordered"),
    ],
)
def test_a_bridge_that_breaks_a_promise_is_found_out(broken: str, number: str) -> None:
    scenario = SCENARIOS["appservices"]
    refusing = {one: {"refuses": 0.4} for one in scenario.layout.ids}
    scenario = replace(scenario, layout=replace(scenario.layout, manners=refusing))
    row = asyncio.run(play(scenario, seconds=5, seed=1, broken=broken, drain_seconds=6))
    assert row.failed is None, row.failed
    assert getattr(row.verdict, number) > 0
