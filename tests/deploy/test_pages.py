"""The pages of docs/: each can be found from the site's menu, which `make docs` builds."""

from collections.abc import Iterator
from typing import Any

import yaml

from tests.support.guide import REPOSITORY


def pages(nav: Any) -> Iterator[str]:
    """What a menu leads to."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from pages(entry)


def test_the_menu_leads_to_every_page_once() -> None:
    menu = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text("utf-8"))["nav"]
    written = sorted(page.name for page in (REPOSITORY / "docs").glob("*.md"))
    assert sorted(pages(menu)) == written
