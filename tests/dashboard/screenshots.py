"""The pictures of the dashboard in docs/: a worker on a Postgres, appservices, four minutes.

    make screenshots

Nothing on them is drawn: traffic goes through the worker, one appservice is down, one is paused,
one left a dead letter.
"""

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import asyncpg
from playwright.async_api import Browser

from appservice_bridge.dev.postgres import EmbeddedPostgres
from appservice_bridge.storage.migrations import migrate
from tests.support.appservice import Appservice, appservice
from tests.support.bridge import Files, registration, worker, write_files
from tests.support.browser import Scheme, chromium_running, desk
from tests.support.dead_letters import set_aside
from tests.support.facts import Connection, capture
from tests.support.reloading import with_tokens

DOCS: Final = Path(__file__).parents[2] / "docs"
SECONDS: Final = 240
BEATS_PER_SECOND: Final = 5
DOWN_AFTER: Final = 60
NAMES: Final = ("telegram", "signal", "irc", "welcome-bot", "hookshot", "moderation")
LARGE: Final = (1180, 860)
TELEPHONE: Final = (390, 780)
COUNTS: Final = "org.matrix.msc3202.device_one_time_keys_count"
FALLBACK: Final = "org.matrix.msc3202.device_unused_fallback_key_types"


async def main() -> None:
    directory = Path(tempfile.mkdtemp(prefix="appservice-bridge-"))
    try:
        with EmbeddedPostgres(directory / "postgres", durable=False) as server:
            dsn = server.dsn("postgres")
            async with scene(dsn, directory) as files, chromium_running() as browser:
                await take_all(browser, files.admin_url)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@asynccontextmanager
async def scene(dsn: str, directory: Path) -> AsyncIterator[Files]:
    """A worker as it is after some minutes of traffic; the traffic goes on."""
    pg = await asyncpg.connect(dsn)
    await migrate(pg)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(pg.close)
        bots = {name: await stack.enter_async_context(appservice()) for name in NAMES}
        some = [registration(name, bot.url, users=[f"@{name}_.*"]) for name, bot in bots.items()]
        files = with_tokens(
            write_files(
                directory / "config",
                dsn,
                [*some, registration("double-puppets", None)],
                homeserver={"kind": "generic"},
                delivery={"backoff": {"first_seconds": 1, "ceiling_seconds": 60}},
            )
        )
        await stack.enter_async_context(worker(files))
        await tell_of_devices(files)
        going = asyncio.create_task(traffic(pg, bots))
        stack.callback(going.cancel)
        await asyncio.sleep(SECONDS)
        for n in (1, 2):
            await set_aside(
                pg, n, appservice_id="hookshot", user="@hookshot_ci:example.org", device="HOOK"
            )
        yield files


async def traffic(pg: Connection, bots: dict[str, Appservice]) -> None:
    """Messages for all; irc goes down after a minute, the bot is paused after two."""
    for beat in range(10**6):
        second = beat // BEATS_PER_SECOND
        for at, name in enumerate(NAMES):
            if (beat * 7 + second // 20) % (at + 3) == 0:
                await capture(pg, f"@{name}_1:example.org", beat * 10 + at)
        if second == DOWN_AFTER:
            bots["irc"].answer = lambda _: (502, {}, b"")
        if beat == 2 * DOWN_AFTER * BEATS_PER_SECOND:
            await pg.execute(
                "update appservice_bridge.lane set paused_at = clock_timestamp()"
                " where appservice_id = 'welcome-bot'"
            )
        await asyncio.sleep(1 / BEATS_PER_SECOND)


async def tell_of_devices(files: Files) -> None:
    """As a homeserver says it: two devices of irc have enough keys, one runs out."""
    counts: dict[str, Any] = {}
    unused: dict[str, Any] = {}
    for user, left in (("anna", 47), ("ben", 3), ("carla", 50)):
        counts[f"@irc_{user}:example.org"] = {"BRIDGE": {"signed_curve25519": left}}
        unused[f"@irc_{user}:example.org"] = {"BRIDGE": ["signed_curve25519"] if left > 9 else []}
    body = json.dumps({"events": [], COUNTS: counts, FALLBACK: unused})
    path = files.relay("irc", "/_matrix/app/v1/transactions/1")
    headers = {"Authorization": "Bearer hs_irc"}
    async with (
        aiohttp.ClientSession() as homeserver,
        homeserver.put(path, data=body, headers=headers) as answer,
    ):
        answer.raise_for_status()


async def take_all(browser: Browser, url: str) -> None:
    await take(browser, url, "dashboard-light", "light", LARGE)
    await take(browser, url, "dashboard-dark", "dark", LARGE)
    await take(browser, url, "dashboard-telephone", "light", TELEPHONE)
    await take(browser, url, "dashboard-lane", "dark", (1000, 980), at="#/lane/irc")


async def take(
    browser: Browser, url: str, name: str, scheme: Scheme, size: tuple[int, int], *, at: str = "#/"
) -> None:
    async with desk(browser, url, scheme=scheme, size=size) as one:
        await one.log_in("operator", at)
        await one.sees("Live")
        if size == LARGE:
            await one.page.get_by_text("History of all lanes").click()
        if size != TELEPHONE:
            await one.page.locator(".chart figcaption:has-text('now')").first.wait_for()
        await one.page.screenshot(path=DOCS / f"{name}.png")


if __name__ == "__main__":
    asyncio.run(main())
