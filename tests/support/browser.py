"""A real headless Chromium that looks at the dashboard, and writes down what it complains of."""

import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Final, Literal

import pytest
from playwright.async_api import (
    Browser,
    ConsoleMessage,
    Page,
    Request,
    async_playwright,
    expect,
)

NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS: Final = 60_000.0
AXE: Final = files("axe_playwright_python") / "axe.min.js"
RUN_AXE: Final = """
async () => (await axe.run({resultTypes: ["violations"]})).violations
    .flatMap(({id, nodes}) => nodes.map(({target, failureSummary: why}) => ({id, target, why})))
"""
SIDEWAYS: Final = "document.documentElement.scrollWidth > document.documentElement.clientWidth"

expect.set_options(timeout=PATIENCE_MS)

Scheme = Literal["light", "dark"]


def chromium() -> str:
    """Where it is; the dashboard is never left untested."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    pytest.fail("the dashboard is tested in Chromium: apt-get install chromium", pytrace=False)


@dataclass(kw_only=True)
class Desk:
    """A tab with what went wrong in it.

    Attributes:
        complaints: errors of the console, of scripts, of the content security policy.
        strangers: requests that left the bridge.
    """

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    async def log_in(self, role: str, at: str = "") -> None:
        """With the token of this role, on the page at this hash."""
        await self.page.goto(self.url + "/" + at)
        await self.page.get_by_label("Admin token").fill(f"secret-{role}")
        await self.page.keyboard.press("Enter")
        await self.page.get_by_text(f"({role})").wait_for()

    async def press(self, name: str) -> None:
        await self.page.get_by_role("button", name=name, exact=True).click()

    async def hears(self, text: str) -> None:
        """Wait until the page said so, aloud."""
        await self.page.locator("#said").get_by_text(text).first.wait_for()

    async def sees(self, text: str) -> None:
        await self.page.get_by_text(text).first.wait_for()

    async def violations(self) -> list[dict[str, Any]]:
        """What axe-core finds of contrast, names, roles and order."""
        if not await self.page.evaluate("'axe' in window"):
            await self.page.evaluate(AXE.read_text())
        found: list[dict[str, Any]] = await self.page.evaluate(RUN_AXE)
        return found

    async def scrolls_sideways(self) -> bool:
        return bool(await self.page.evaluate(SIDEWAYS))

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)

    def _watch(self, request: Request) -> None:
        if not request.url.startswith((self.url, "data:")):
            self.strangers.append(request.url)


@asynccontextmanager
async def chromium_running() -> AsyncIterator[Browser]:
    """One browser; each test has a profile of its own in it."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium(), args=[*sandbox, "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def desk(
    browser: Browser,
    url: str,
    *,
    scheme: Scheme = "light",
    size: tuple[int, int] = (1280, 900),
    may_complain_of: Sequence[str] = (),
) -> AsyncIterator[Desk]:
    """A tab; when it closes nothing may have gone wrong in it but what is named."""
    width, height = size
    context = await browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": height}, reduced_motion="reduce"
    )
    context.set_default_timeout(PATIENCE_MS)
    page = await context.new_page()
    one = Desk(page=page, url=url)
    page.on("console", one._hear)
    page.on("pageerror", lambda error: one.complaints.append(str(error)))
    page.on("request", one._watch)
    try:
        yield one
    finally:
        await context.close()
    assert one.strangers == []
    assert [
        each for each in one.complaints if not any(part in each for part in may_complain_of)
    ] == []
