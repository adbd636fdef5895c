"""A ping through the homeserver asks the appservice, and ends its lane's rest if it is well."""

import asyncio
import json
from pathlib import Path

import asyncpg
import pytest

from tests.support.appservice import Request
from tests.support.bridge import worker
from tests.support.connecting import files_for, wait_until
from tests.support.relaying import PING, homeserver, one_bot

PATIENT = {"backoff": {"first_seconds": 300, "ceiling_seconds": 300}}
EVENT = b'{"events":[{"event_id":"$1"}]}'


def failing(_request: Request) -> tuple[int, dict[str, str], bytes]:
    return 500, {}, b'{"errcode":"M_UNKNOWN"}'


async def test_a_ping_reaches_the_appservice_and_its_answer_comes_back(
    database: str, tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (bot, hs):
        for body in (b'{"transaction_id":"mine"}', b"{}", b'{"transaction_id":null}', b"no json"):
            bot.answer = lambda _: (202, {}, b'{ "fine":1.0}')
            answer = await hs.ask("POST", PING, body=body)
            assert (answer.status, answer.body) == (202, b'{ "fine":1.0}')
            seen = bot.requests[-1]
            assert (seen.method, seen.path, seen.token) == ("POST", PING, "hs_bot")
            assert seen.body == body
        bot.answer = failing
        assert (await hs.ask("POST", PING, body=b"{}")).status == 500


async def test_the_bridge_s_own_ping_is_answered_without_asking_the_appservice(
    database: str, tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (bot, hs):
        own = json.dumps({"transaction_id": "ab-wake-0123456789abcdef"}).encode()
        answer = await hs.ask("POST", PING, body=own)
        assert (answer.status, answer.body) == (200, b"{}")
        assert (await hs.ask("POST", PING, body=own, token="wrong")).status == 403
    assert bot.requests == []


@pytest.mark.parametrize("status", [200, 202])
async def test_case_23_a_successful_ping_ends_a_rest_at_once(
    database: str, tmp_path: Path, status: int
) -> None:
    async with one_bot(tmp_path, database, delivery=PATIENT) as (bot, hs):
        bot.answer = failing
        assert await hs.push("1", EVENT) == 200
        await bot.until(lambda: len(bot.requests) == 1)
        await asyncio.sleep(0.2)  # it rests now, for minutes
        bot.answer = lambda _: (status, {}, b"{}")
        assert (await hs.ask("POST", PING, body=b"{}")).status == status
        await bot.until(lambda: len([r for r in bot.taken if r.method == "PUT"]) == 1)
    first, _, again = bot.requests
    assert (again.path, again.body) == (first.path, first.body)


async def test_a_ping_during_the_attempt_that_fails_ends_the_rest_after_it(
    database: str, tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database, delivery=PATIENT) as (bot, hs):
        bot.answer, bot.delay_seconds = failing, 0.6
        assert await hs.push("1", EVENT) == 200
        await bot.until(lambda: len(bot.requests) == 1)
        bot.delay_seconds, bot.answer = 0.0, lambda r: (200 if r.method == "POST" else 500, {}, b"")
        assert (await hs.ask("POST", PING, body=b"{}")).status == 200
        await bot.until(lambda: len([r for r in bot.requests if r.method == "PUT"]) == 2)


async def test_a_ping_that_fails_ends_no_rest(
    pg: "asyncpg.Connection[asyncpg.Record]", database: str, tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database, delivery=PATIENT) as (bot, hs):
        bot.answer = failing
        assert await hs.push("1", EVENT) == 200
        await bot.until(lambda: len(bot.requests) == 1)
        await asyncio.sleep(0.2)
        assert (await hs.ask("POST", PING, body=b"{}")).status == 500
        assert (await hs.ask("POST", PING, body=b"{}", token="wrong")).status == 403
        resting = "select due_at > now() + interval '1 minute' from appservice_bridge.lane"
        await wait_until(pg, resting)
        await asyncio.sleep(1.0)
        assert await pg.fetchval(resting)
    assert [request.method for request in bot.requests] == ["PUT", "POST"]


@pytest.mark.parametrize("url", [None, "websocket"])
async def test_case_23_who_has_no_url_is_not_asked_and_the_homeserver_is_told(
    database: str, tmp_path: Path, url: str | None
) -> None:
    files = files_for(tmp_path, database, "websocket", url)
    async with worker(files), homeserver(files) as hs:
        ping = await hs.ask("POST", PING, body=b"{}")
        assert (ping.status, ping.errcode) == (400, "M_URL_NOT_SET")
        for path in ("users/@b_1:example.org", "rooms/%23b:example.org"):
            query = await hs.ask("GET", f"/_matrix/app/v1/{path}")
            assert (query.status, query.errcode) == (404, "M_NOT_FOUND")
