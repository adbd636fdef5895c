"""The page before a real worker, in a real Chromium: what each role sees there and can do."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, expect

from tests.support.appservice import Appservice, appservice, ok
from tests.support.bridge import Files, registration, worker, worker_process, write_files
from tests.support.browser import Desk, desk
from tests.support.dead_letters import BOT, buried, set_aside
from tests.support.facts import Connection, capture, wait_until
from tests.support.reloading import with_tokens
from tests.support.standin_admin import NASTY

pytestmark = pytest.mark.asyncio(loop_scope="module")

LANE: Final = "#/lane/bot"
LONG_REST: Final = {"backoff": {"first_seconds": 300, "ceiling_seconds": 300}}
PAUSED: Final = "select paused_at is not null from appservice_bridge.lane"
GOING: Final = "select paused_at is null from appservice_bridge.lane"
FAILED: Final = "select failed_attempts > 0 from appservice_bridge.lane"


@pytest_asyncio.fixture(loop_scope="module")
async def bot() -> AsyncIterator[Appservice]:
    async with appservice() as one:
        yield one


@pytest.fixture
def files(database: str, tmp_path: Path, bot: Appservice) -> Files:
    bots = [registration("bot", bot.url, users=["@b_.*"])]
    return with_tokens(write_files(tmp_path, database, bots, delivery=LONG_REST))


@pytest_asyncio.fixture(loop_scope="module")
async def url(pg: Connection, files: Files) -> AsyncIterator[str]:
    async with worker(files):
        await wait_until(
            pg,
            "select every(a.live_at is not null and l.worker_id is not null)"
            " from appservice_bridge.lane l join appservice_bridge.appservice a"
            " using (appservice_id)",
            within=60,
        )
        yield files.admin_url


def button(one: Desk, name: str) -> Locator:
    return one.page.get_by_role("button", name=name, exact=True)


async def test_a_viewer_sees_everything_and_has_no_button(
    browser: Browser, pg: Connection, url: str
) -> None:
    await set_aside(pg, 1)
    async with desk(browser, url) as one:
        await one.log_in("viewer")
        await one.sees("All is well: 1 lane, nothing waits.")
        await one.page.get_by_role("link", name="bot", exact=True).click()
        await one.sees("Your token may look.")
        await one.sees("refused (400 M_BAD_JSON) in abx-1")
        for name in ("Pause", "Resume", "Retry now", "Ping", "Redrive", "Discard", "Set aside"):
            await expect(button(one, name)).to_have_count(0)
        await expect(one.page.get_by_role("checkbox")).to_have_count(0)
        await expect(one.page.get_by_role("link", name="Audit")).to_have_count(0)
        await one.page.goto(url + "/#/audit")
        await expect(one.page.locator("h1")).to_have_text("Lanes")


@pytest.mark.parametrize("role", ["operator", "admin"])
async def test_operators_and_admins_pause_resume_and_redrive(
    browser: Browser, pg: Connection, url: str, bot: Appservice, role: str
) -> None:
    letter = await set_aside(pg, 1)
    async with desk(browser, url) as one:
        await one.log_in(role, LANE)
        await one.press("Pause")
        await one.hears("bot: paused")
        assert await pg.fetchval(PAUSED)
        await one.sees("an operator paused it")
        await expect(button(one, "Pause")).to_be_hidden()
        await one.page.get_by_label(f"Choose dead letter {letter[:8]}").check()
        await one.press("Redrive")
        await one.hears("1 dead letter will be delivered, behind all that waits")
        await one.sees("1 item (")
        assert bot.requests == []
        await one.press("Resume")
        await one.hears("bot: resumed")
        assert await pg.fetchval(GOING)
        await bot.until(lambda: [item["content"]["n"] for item in bot.to_device] == [1])
        await one.sees("It is well.")
        assert await buried(pg) == 0


@pytest.mark.parametrize("role", ["operator", "admin"])
async def test_operators_and_admins_set_the_one_item_in_flight_aside(
    browser: Browser, pg: Connection, url: str, bot: Appservice, role: str
) -> None:
    bot.answer = lambda _: (503, {}, b"{}")
    await capture(pg, BOT, 1)
    await wait_until(pg, FAILED)
    async with desk(browser, url) as one:
        await one.log_in(role, LANE)
        await one.page.get_by_text("More", exact=True).click()
        await one.press("Set aside")
        await one.sees("The one item in it becomes a dead letter and is not sent again")
        assert await buried(pg) == 0
        await one.press("Set it aside")
        await one.hears("becomes a dead letter, unless its ack comes first")
        await wait_until(pg, "select count(*) = 1 from appservice_bridge.dead_letter")
        await one.sees("set aside by an operator")
        await one.sees("Nothing is in flight.")


async def test_only_an_admin_discards_and_reads_who_changed_what(
    browser: Browser, pg: Connection, url: str, bot: Appservice
) -> None:
    await set_aside(pg, 1)
    async with desk(browser, url) as one:
        await one.log_in("operator", LANE)
        await one.press("Choose all shown")
        await expect(button(one, "Redrive")).to_be_enabled()
        await expect(button(one, "Discard")).to_have_count(0)
        await one.press("Log out")
        await one.log_in("admin", LANE)
        await one.press("Choose all shown")
        await one.press("Discard")
        await one.press("Discard 1 dead letter")
        await one.hears("1 dead letter discarded")
        assert await buried(pg) == 0
        await one.sees("None. What the appservice refuses for ever")
        await one.page.get_by_role("link", name="Audit").click()
        row = one.page.get_by_role("region", name="What was changed").locator("tbody tr").first
        for said in ("admin (admin)", "127.0.0.1", "discard", "bot"):
            await expect(row).to_contain_text(said)
    assert bot.requests == []


async def test_a_lane_that_fails_and_recovers_is_seen_without_asking_again(
    browser: Browser, pg: Connection, url: str, bot: Appservice
) -> None:
    async with desk(browser, url) as one:
        await one.log_in("operator")
        await one.sees("All is well: 1 lane, nothing waits.")
        bot.answer = lambda _: (503, {}, b"{}")
        await capture(pg, BOT, 1)
        await one.sees("1 of 1 lane is not well, first bot: failing")
        await one.page.get_by_role("link", name="bot").first.click()
        await one.sees("it did not take a transaction")
        await one.sees("it answers, and refuses: its own log says why; then retry.")
        await one.sees("1 to device")
        await expect(
            one.page.get_by_role("region", name="Transactions").locator("tbody tr").first
        ).to_contain_text("in flight")
        bot.answer = ok
        await one.press("Retry now")
        await one.hears("bot: its rest or halt is ended")
        await one.sees("It is well.")
        assert await one.violations() == []


async def test_what_was_refused_is_told_and_the_button_is_there_again(
    browser: Browser, url: str, bot: Appservice
) -> None:
    async with desk(browser, url, may_complain_of=["Failed to load resource"]) as one:
        await one.log_in("operator", LANE)
        await one.press("Ping")
        await one.hears("bot: answered the ping in")
        bot.answer = lambda _: (403, {}, b"{}")
        await one.press("Ping")
        await one.hears("Ping: ")
        await one.page.get_by_text("More", exact=True).click()
        for verb in ("Resync", "Replay"):
            await one.press(verb)
            await one.page.locator("#confirm-yes").click()
            await one.hears(f"{verb}: ")
            await expect(button(one, verb)).to_be_enabled()


async def test_no_payload_reaches_the_page(
    browser: Browser, pg: Connection, url: str, bot: Appservice
) -> None:
    canary = "CANARY-OF-A-PAYLOAD"
    body = {"type": "m", "sender": "@a:x", "content": {"body": canary}}
    bot.answer = lambda _: (503, {}, b"{}")
    await capture(pg, BOT, 1, json.dumps(body).encode())
    await set_aside(pg, 1, payload=json.dumps(body).encode())
    await wait_until(pg, FAILED)
    async with desk(browser, url) as one:
        await one.log_in("admin", LANE)
        await one.sees("refused (400")
        await one.sees("in flight")
        assert canary not in await one.page.content()
    assert bot.requests


async def test_an_id_of_any_characters_is_shown_as_it_is_and_can_be_steered(
    browser: Browser, database: str, tmp_path: Path, pg: Connection
) -> None:
    odd = registration("odd", "http://127.0.0.1:9", users=["@odd_.*"]) | {"id": NASTY}
    files = with_tokens(write_files(tmp_path, database, [odd]))
    async with worker(files), desk(browser, files.admin_url) as one:
        await one.log_in("operator")
        await one.page.get_by_role("link", name=NASTY).first.click()
        await expect(one.page.locator("h1")).to_have_text(NASTY)
        await one.press("Pause")
        await one.hears(f"{NASTY}: paused")
        assert await pg.fetchval(PAUSED)


async def test_the_page_outlives_its_worker_and_is_live_again_with_the_next(
    browser: Browser, pg: Connection, files: Files
) -> None:
    refused = ["Failed to load resource"]
    async with (
        worker_process(files) as process,
        desk(browser, files.admin_url, may_complain_of=refused) as one,
    ):
        connection = one.page.locator("#connection")
        await one.log_in("viewer")
        await expect(connection).to_have_text("Live")
        await process.kill()
        await expect(connection).to_contain_text("the figures are from")
        await one.page.get_by_role("link", name="bot").first.click()
        await one.sees("The bridge does not answer.")
        await process.start()
        await expect(connection).to_have_text("Live", timeout=90_000)
        await one.sees("Last acknowledgement")
