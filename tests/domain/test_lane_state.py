"""The words for a lane's state are the same wherever an operator reads them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import yaml

from appservice_bridge.domain.lane_state import LaneState

ROOT: Final = Path(__file__).parents[2]
HTTP: Final = ROOT / "appservice_bridge/http"


def in_the_api() -> list[str]:
    document = yaml.safe_load((HTTP / "admin_api.yaml").read_text())
    found: list[str] = document["components"]["schemas"]["Appservice"]["properties"]["state"][
        "enum"
    ]
    return found


def on_the_page() -> list[str]:
    words = (HTTP / "dashboard/page/words.js").read_text()
    return re.findall(r"^  (\w+): \{ tone:", words, re.MULTILINE)


def in_the_docs() -> list[str]:
    page = (ROOT / "docs/troubleshooting.md").read_text()
    _, _, after = page.partition("## What a lane's state says")
    table, _, _ = after.partition("\n## ")
    return list(dict.fromkeys(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)))


@pytest.mark.parametrize("told", [in_the_api, on_the_page, in_the_docs])
def test_each_state_is_told_by_its_one_word(told: Callable[[], list[str]]) -> None:
    assert sorted(told()) == sorted(LaneState)
