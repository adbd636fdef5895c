"""The page before a stand-in of the admin port, in a real Chromium: what it shows, and to whom."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from appservice_bridge.domain.lane_state import LaneState
from tests.support.browser import Scheme, chromium, desk
from tests.support.standin_admin import (
    NASTY,
    StandIn,
    every_state,
    in_flight,
    lane,
    letter,
    stand_in,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGES = ("#/", "#/lane/failing", "#/audit")
FIRST_PAINT_MS = 10_000.0  # a busy machine's; what it took is printed
FOCUSED = """
(({innerText, ariaLabel}) => [innerText, ariaLabel])(document.activeElement)
"""
SHOWN = "performance.getEntriesByType('mark').map(({name, startTime}) => [name, startTime])"


@pytest_asyncio.fixture(loop_scope="module")
async def bridge() -> AsyncIterator[StandIn]:
    async with stand_in([*every_state(), lane(NASTY)]) as one:
        one.letters = [letter(1), letter(2)]
        yield one


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_in_light_and_dark(
    browser: Browser, bridge: StandIn, scheme: Scheme
) -> None:
    async with desk(browser, bridge.url, scheme=scheme) as one:
        await one.page.goto(bridge.url)
        await one.sees("Admin token")
        assert await one.violations() == []
        await one.log_in("admin")
        for at in PAGES:
            await one.page.goto(f"{bridge.url}/{at}")
            await one.page.locator("h1:not(:text('Log in'))").wait_for()
            if "lane" in at:
                await one.page.locator(".chart figcaption:has-text('now')").first.wait_for()
                await one.page.get_by_text("More", exact=True).click()
                await one.press("Choose all shown")
            assert await one.violations() == []
        await one.page.goto(f"{bridge.url}/#/lane/failing")
        await one.press("Choose all shown")
        await one.press("Discard")
        assert await one.violations() == []
        await one.press("Cancel")
        bridge.flight = in_flight(items=1)
        await one.page.get_by_text("More", exact=True).click()
        await one.press("Set aside")
        assert await one.violations() == []


async def test_the_theme_follows_the_system_until_one_is_chosen_and_that_stays(
    browser: Browser, bridge: StandIn
) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    async with desk(browser, bridge.url, scheme="dark") as one:
        await one.page.goto(bridge.url)
        dark = await one.page.evaluate(ground)
        await one.press("Theme: system")
        light = await one.page.evaluate(ground)
        assert light != dark
        await one.page.reload()
        assert await one.page.evaluate(ground) == light
        await one.press("Theme: light")
        assert await one.page.evaluate(ground) == dark


@pytest.mark.parametrize("at", PAGES)
async def test_a_telephone_never_scrolls_sideways(
    browser: Browser, bridge: StandIn, at: str
) -> None:
    async with desk(browser, bridge.url, size=(360, 740)) as one:
        await one.log_in("admin", at)
        await one.page.locator("h1:not(:text('Log in'))").wait_for()
        if at == "#/":
            await one.page.get_by_text("History of all lanes").click()
        if at != "#/audit":
            await one.page.locator(".chart canvas").first.wait_for()
        assert not await one.scrolls_sideways()


async def test_the_worst_lane_comes_first_and_each_state_has_a_word_and_a_shape_of_its_own(
    browser: Browser, bridge: StandIn
) -> None:
    async with desk(browser, bridge.url) as one:
        await one.log_in("viewer")
        await one.sees("8 of 12 lanes are not well, first halted")
        rows = one.page.locator(".rows .lane")
        order = await rows.locator(".id").all_inner_texts()
        assert order[:8] == [
            *("halted", "unserved", "failing", "disconnected", "unregistered"),
            *("behind", "going_live", "paused"),
        ]
        assert order[-1] == "no_transport"
        shapes = await rows.locator("svg path").evaluate_all(
            "all => all.map(each => each.getAttribute('d'))"
        )
        words = await rows.locator(".badge").all_inner_texts()
        assert len(set(shapes)) == len(set(words)) == len(LaneState)
        for lane_ in bridge.lanes:
            lane_.update(state="idle", well=True, oldest_waiting_seconds=None)
        await one.sees("All is well: 12 lanes, nothing waits.")


async def test_lanes_are_found_by_what_is_said_of_them(browser: Browser, bridge: StandIn) -> None:
    async with desk(browser, bridge.url) as one:
        await one.log_in("viewer")
        rows = one.page.locator(".rows .lane")
        await one.page.get_by_label("Search").fill("unreachable HALT")
        await expect(rows).to_have_count(1)
        await one.sees("1 of 12 lanes")
        await one.page.get_by_label("Search").fill("nothing like it")
        await one.sees("No lane is like this. Empty the search, or show all.")
        await one.page.get_by_label("Search").fill("")
        await one.page.get_by_label("Show").select_option("not well")
        await expect(rows).to_have_count(8)


async def test_an_id_with_markup_stays_text_and_leads_to_its_page(
    browser: Browser, bridge: StandIn
) -> None:
    async with desk(browser, bridge.url) as one:
        await one.log_in("operator")
        await one.page.get_by_role("link", name=NASTY).click()
        await expect(one.page.locator("h1")).to_have_text(NASTY)
        await one.sees("It is well.")
        await one.press("Ping")
        await one.hears(NASTY)
        assert await one.page.locator("main img, #said img").count() == 0
        await one.page.reload()
        await expect(one.page.locator("h1")).to_have_text(NASTY)
    [(path, _)] = bridge.orders
    assert path.startswith("appservices/%3Cimg%20src%3Dx")
    assert path.endswith("/ping")
    assert path.count("/") == 2


async def test_one_look_at_a_lane_says_what_is_wrong_since_when_and_what_to_do(
    browser: Browser, bridge: StandIn
) -> None:
    async with desk(browser, bridge.url) as one:
        await one.log_in("viewer", "#/lane/failing")
        answer = one.page.locator(".answer")
        for said in (
            "It is not well since",
            "for 4 min: it is failing.",
            "What to do: look at its log.",
            "1,234 items (4.2 MiB) wait, the oldest room key for 4 min; 1 device runs out of keys.",
        ):
            await expect(answer).to_contain_text(said)
        devices = one.page.get_by_role("region", name="Devices").locator("tbody tr")
        await expect(devices.first).to_contain_text("3 one-time keys are left")


async def test_what_cannot_be_undone_is_asked_and_escape_means_no(
    browser: Browser, bridge: StandIn
) -> None:
    async with desk(browser, bridge.url) as one:
        await one.log_in("admin", "#/lane/failing")
        await one.page.get_by_label("Choose dead letter 00000002").check()
        await one.press("Discard")
        await one.sees("Discard 1 dead letter for good?")
        await one.page.keyboard.press("Escape")
        await expect(one.page.get_by_role("dialog")).to_be_hidden()
        await one.press("Discard")
        await expect(one.page.get_by_role("button", name="Cancel")).to_be_focused()
        await one.press("Cancel")
        assert bridge.orders == []
        await one.press("Discard")
        await one.press("Discard 1 dead letter")
        await one.hears("1 dead letter discarded")
    assert bridge.orders == [("dead-letters/discard", {"ids": [letter(2)["id"]]})]


@pytest.mark.parametrize(
    ("flight", "at", "why"),
    [
        ({"items": 15}, "failing", "15 things in flight: retry and split until one is left."),
        ({"items": 1, "device_keys": 1}, "failing", "2 things in flight"),
        ({"items": 1, "bury_asked_since": 1}, "failing", "abcdef-7 is to be set aside."),
        ({"items": 1}, "paused", "It is paused: resume it first."),
    ],
)
async def test_what_cannot_be_set_aside_says_why(
    browser: Browser, bridge: StandIn, flight: dict[str, int], at: str, why: str
) -> None:
    bridge.flight = in_flight(**flight)
    async with desk(browser, bridge.url) as one:
        await one.log_in("operator", f"#/lane/{at}")
        await one.page.get_by_text("More", exact=True).click()
        await one.sees(why)
        await expect(one.page.get_by_role("button", name="Set aside")).to_be_disabled()


async def test_what_is_set_aside_is_what_was_shown_when_it_was_asked(
    browser: Browser, bridge: StandIn
) -> None:
    bridge.flight = in_flight(items=0, device_lists=1, doubtful=True)
    async with desk(browser, bridge.url) as one:
        await one.log_in("operator", "#/lane/failing")
        await one.page.get_by_text("More", exact=True).click()
        await one.press("Set aside")
        await one.sees("It may have been processed.")
        await one.press("Cancel")
        await one.press("Set aside")
        bridge.flight = in_flight(txn_id="abcdef-8", items=1)
        await one.sees("abcdef-8: 1 item")
        await one.sees("Set abcdef-7 aside?")
        await one.press("Set it aside")
        await one.hears("failing: abcdef-7 becomes a dead letter")
    assert bridge.orders == [("appservices/failing/retry", {"bury": "abcdef-7"})]


async def test_everything_can_be_done_with_the_keyboard_alone(
    browser: Browser, bridge: StandIn
) -> None:
    async with desk(browser, bridge.url) as one:
        press = one.page.keyboard.press

        async def tab_to(name: str) -> None:
            for _ in range(60):
                await press("Tab")
                if name in await one.page.evaluate(FOCUSED):
                    return
            raise AssertionError(f"no way to {name} by Tab")

        await one.log_in("admin")
        await tab_to("halted")
        await press("Enter")
        await expect(one.page.locator("h1")).to_be_focused()
        await one.page.get_by_label("Choose dead letter 00000001").wait_for()
        await tab_to("Pause")
        await press("Enter")
        await one.hears("halted: paused")
        await tab_to("Choose dead letter 00000001")
        await press("Space")
        await tab_to("Discard")
        await press("Enter")
        await press("Tab")
        await press("Enter")
        await one.hears("1 dead letter discarded")
    assert [path for path, _ in bridge.orders] == [
        "appservices/halted/pause",
        "dead-letters/discard",
    ]


async def test_a_lost_connection_is_said_with_the_age_of_the_figures_until_it_is_back(
    browser: Browser, bridge: StandIn
) -> None:
    refused = "Failed to load resource"
    async with desk(browser, bridge.url, may_complain_of=[refused]) as one:
        await one.log_in("viewer")
        await expect(one.page.locator("#connection")).to_have_text("Live")
        bridge.speaks.clear()
        lost = one.page.locator("#connection")
        await expect(lost).to_contain_text("Connection lost the figures are from")
        await expect(lost).to_contain_text("trying again in")
        bridge.speaks.set()
        await expect(lost).to_have_text("Live", timeout=60_000)


async def test_a_wrong_token_is_refused_and_a_logout_forgets_it(
    browser: Browser, bridge: StandIn
) -> None:
    async with desk(browser, bridge.url, may_complain_of=["401"]) as one:
        await one.page.goto(bridge.url)
        await one.page.get_by_label("Admin token").fill("another")
        await one.press("Log in")
        await one.sees("This is none of the bridge's tokens.")
        await one.log_in("viewer")
        await one.press("Log out")
        await one.sees("Admin token")
        assert await one.page.evaluate("sessionStorage.length") == 0
        await one.page.reload()
        await one.sees("Admin token")


async def test_charts_are_loaded_only_when_they_are_shown(
    browser: Browser, bridge: StandIn
) -> None:
    async with desk(browser, bridge.url) as one:
        await one.log_in("viewer")
        await one.page.locator(".rows .lane").first.wait_for()
        assert not [path for path in bridge.asked if "uplot" in path or "history" in path]
        await one.page.get_by_text("History of all lanes").click()
        await one.page.locator(".chart canvas").first.wait_for()
        assert [path for path in bridge.asked if "uplot" in path]


async def test_a_thousand_lanes_are_painted_at_once(
    browser: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    others = range(1000 - len(LaneState))
    lanes = [lane(f"appservice-{n:04}", backlog=n if n % 9 else 0) for n in others]
    async with stand_in(every_state() + lanes) as bridge, desk(browser, bridge.url) as one:
        await one.log_in("viewer")
        await one.page.reload()
        rows = one.page.locator(".rows .lane")
        await expect(rows).to_have_count(1000)
        marks = dict(await one.page.evaluate(SHOWN))
        painted = await one.page.evaluate(
            "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        )
        with capsys.disabled():
            print(
                f"\n1,000 lanes: first paint {painted:.0f} ms, first screen of lanes"
                f" {marks['lanes 40']:.0f} ms, all {marks['lanes 1000']:.0f} ms after navigation"
            )
        assert marks["lanes 40"] < FIRST_PAINT_MS
        assert painted < FIRST_PAINT_MS
        await one.page.get_by_label("Search").fill("appservice-0777")
        await expect(rows).to_have_count(1)


async def test_a_lane_that_is_gone_is_said_to_be(browser: Browser, bridge: StandIn) -> None:
    async with desk(browser, bridge.url, may_complain_of=["404"]) as one:
        await one.log_in("operator", "#/lane/gone")
        await one.sees("There is no appservice of this id.")


async def test_without_a_chromium_nothing_is_skipped_and_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
        chromium()
