"""The alert rules and the dashboard name only what a scrape has."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from prometheus_client import ProcessCollector

from appservice_bridge.domain.capture import CaptureMode
from appservice_bridge.domain.lane_state import LaneState
from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.telemetry import catalogue
from appservice_bridge.telemetry.sheet import PREFIX, Figure

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
NAMED: Final = re.compile(r"\b(?:appservice_bridge|process)_\w+")
MATCHED: Final = re.compile(r'(\w+)(=~?)"([^"]*)"')
OF_SCRAPING: Final = {"instance"}
WORDS: Final = {
    "state": {*LaneState, "in_use", "idle"},
    "kind": {"all", "to_device"},
    "mode": {*CaptureMode},
    "outcome": {*LedgerOutcome, "http_401", "http_403"},
}


def existing() -> dict[str, set[str]]:
    """Every sample's name and its labels."""
    names = {
        PREFIX + one.name + ("_total" if one.counter else ""): set(one.labels)
        for one in vars(catalogue).values()
        if isinstance(one, Figure)
    }
    names[PREFIX + "attempts_total"] = {"appservice", "outcome"}
    for part, more in (("bucket", {"le"}), ("count", set()), ("sum", set())):
        names[f"{PREFIX}capture_to_ack_seconds_{part}"] = {"appservice", *more}
    for family in ProcessCollector(registry=None).collect():
        names |= {sample.name: set() for sample in family.samples}
    return names


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana/appservice-bridge.json").read_text())
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """What is asked, and for which alert or panel."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield f"{panel['title']} {target['refId']}", target["expr"]
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]


@pytest.mark.parametrize(("of", "expression"), list(expressions()))
def test_an_expression_names_metrics_and_labels_that_exist(of: str, expression: str) -> None:
    names, known = NAMED.findall(expression), existing()
    assert names
    assert set(names) <= known.keys()
    labels = set().union(*(known[name] for name in names)) | OF_SCRAPING
    for group in re.findall(r"(?:by|on) \(([^)]*)\)", expression):
        assert set(group.replace(" ", "").split(",")) <= labels
    for label, how, value in MATCHED.findall(expression):
        assert label in labels
        if label in WORDS:
            assert set(value.split("|") if how == "=~" else [value]) <= WORDS[label]


def test_every_alert_says_how_bad_it_is_and_what_to_do_and_is_tried_out() -> None:
    tried = (DEPLOY / "prometheus/alerts_test.yml").read_text()
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert len(rule["annotations"]["description"]) > 40
        assert f'"{rule["alert"]}"' in tried


def test_what_the_documentation_lists_is_what_a_scrape_has() -> None:
    page = (DEPLOY.parent / "docs/metrics.md").read_text()
    listed = set(re.findall(r"^\| `(appservice_bridge_\w+)`", page, re.MULTILINE))
    counted = {f"{PREFIX}attempts_total", f"{PREFIX}capture_to_ack_seconds"}
    figures = {
        PREFIX + one.name + ("_total" if one.counter else "")
        for one in vars(catalogue).values()
        if isinstance(one, Figure)
    }
    assert listed == figures | counted


def test_the_panels_of_the_dashboard_lie_beside_each_other() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
