"""`ping`: what came of it, in the words of the specification."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from appservice_bridge.cli.context import owners
from appservice_bridge.routing.announcing import announce
from appservice_bridge.storage.database import Database
from tests.support.appservice import appservice, ok
from tests.support.bridge import Files, registration, worker, write_files
from tests.support.command import command
from tests.support.facts import Connection, capture

Written = Callable[[str | None], Awaitable[Files]]
DUE = "select due_at <= now() from appservice_bridge.lane"


@pytest.fixture
def written(tmp_path: Path, database: str, db: Database, pg: Connection) -> Written:
    """Files of one appservice whose lane rests for long."""

    async def write(url: str | None) -> Files:
        files = write_files(tmp_path, database, [registration("bot", url, users=["@b_.*"])])
        await announce(db, owners(files.load()), epoch="test")
        await pg.execute("update appservice_bridge.lane set due_at = 'infinity'")
        return files

    return write


async def ping(files: Files, *more: str) -> tuple[int, str, str]:
    return await command("ping", "bot", "--config", str(files.config), *more)


async def test_a_ping_is_that_of_the_specification_and_an_answer_ends_the_rest(
    pg: Connection, written: Written
) -> None:
    async with appservice() as bot:
        code, out, err = await ping(await written(bot.url))
    assert (code, err) == (0, "")
    assert out.startswith("bot answered 200 in ")
    (asked,) = bot.requests
    assert (asked.method, asked.path, asked.token) == ("POST", "/_matrix/app/v1/ping", "hs_bot")
    assert list(json.loads(asked.body)) == ["transaction_id"]
    assert await pg.fetchval(DUE)


@pytest.mark.parametrize(
    ("status", "mend"),
    [(401, "hs_token"), (404, "does not know pings"), (302, "no redirect"), (500, "its own log")],
)
async def test_case_23_another_answer_is_told_with_its_status_and_ends_no_rest(
    pg: Connection, written: Written, status: int, mend: str
) -> None:
    async with appservice() as bot:
        bot.answer = lambda _: (status, {"Location": bot.url}, b"SECRET")
        code, out, err = await ping(await written(bot.url))
    assert (code, out) == (1, "")
    assert f"bot: M_BAD_STATUS (status {status}): " in err
    assert mend in err
    assert "SECRET" not in err
    assert len(bot.requests) == 1
    assert not await pg.fetchval(DUE)


async def test_case_23_an_appservice_that_hangs_is_a_timeout(written: Written) -> None:
    async with appservice() as bot:
        bot.delay_seconds = 30
        code, _, err = await ping(await written(bot.url), "--timeout", "0.3")
    assert code == 1
    assert "bot: M_CONNECTION_TIMEOUT: " in err


@pytest.mark.parametrize("url", ["https://127.0.0.1:{}", "http://127.0.0.1:{}"])
async def test_case_23_where_nobody_listens_it_is_a_failed_connection(
    written: Written, url: str
) -> None:
    async with appservice() as gone:
        port = gone.url.rpartition(":")[2]
    code, _, err = await ping(await written(url.format(port)))
    assert code == 1
    assert "bot: M_CONNECTION_FAILED: nobody takes connections" in err


async def test_a_host_that_is_not_known_is_named_as_such(written: Written) -> None:
    _, _, err = await ping(await written("http://nobody.invalid:1"))
    assert "bot: M_CONNECTION_FAILED: the host of its url is not known here" in err


async def test_case_23_where_no_url_is_set_there_is_nobody_to_ask(written: Written) -> None:
    code, _, err = await ping(await written(None))
    assert code == 1
    assert "bot: M_URL_NOT_SET: " in err


async def test_case_23_a_lane_that_rests_delivers_at_once_after_a_ping_that_succeeds(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        long = {"backoff": {"first_seconds": 300, "ceiling_seconds": 300}}
        bot.answer = lambda _: (503, {}, b"{}")
        files = write_files(
            tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])], delivery=long
        )
        async with worker(files):
            await capture(pg, "@b_1:example.org", 1)
            await bot.until(lambda: len(bot.requests) == 1)
            while not await pg.fetchval("select failed_attempts > 0 from appservice_bridge.lane"):
                await asyncio.sleep(0.02)
            bot.answer = ok
            assert (await ping(files))[0] == 0
            await bot.until(lambda: len(bot.to_device) == 1)
