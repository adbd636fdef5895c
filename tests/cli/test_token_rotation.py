"""A registration's tokens are replaced, and the homeserver still has the former ones."""

import dataclasses
from pathlib import Path

import pytest

from appservice_bridge.domain.tokens import TokenKind, Tokens
from appservice_bridge.storage import tokens
from appservice_bridge.storage.database import Database
from tests.support.appservice import appservice
from tests.support.bridge import Files, registration, worker_process, write_files
from tests.support.facts import Connection
from tests.support.intake import registered
from tests.support.relaying import Homeserver, homeserver
from tests.support.reloading import Operator, change, operator, register, with_tokens


async def push(hs: Homeserver, number: int, token: str) -> int:
    body = b'{"events":[{"event_id":"$%d","type":"m"}]}' % number
    return await hs.push(str(number), body, token=token)


async def rotated(op: Operator, files: Files, url: str, token: str) -> None:
    register(files, registration("bot", url) | {"hs_token": token})
    assert await op.reload() == "reloaded"


async def test_the_former_hs_token_is_accepted_for_a_while_and_the_new_one_is_sent_at_once(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        files = with_tokens(write_files(tmp_path, database, [registration("bot", bot.url)]))
        async with worker_process(files) as one, operator(files) as op, homeserver(files) as hs:
            assert await push(hs, 1, "hs_new") == 403
            assert await push(hs, 1, "hs_bot") == 200
            await bot.until(lambda: len(bot.events) == 1)
            await rotated(op, files, bot.url, "hs_new")
            assert await push(hs, 2, "hs_bot") == 200  # it has not been restarted
            assert await push(hs, 3, "hs_new") == 200
            await bot.until(lambda: len(bot.events) == 3)
            await one.kill()
            await one.start()
            assert await push(hs, 4, "hs_bot") == 200  # also after a restart of ours
            await pg.execute(
                "update appservice_bridge.appservice_token set accepted_until = now()"
                " where accepted_until is not null"
            )
            await rotated(op, files, bot.url, "hs_newer")
            assert await push(hs, 5, "hs_bot") == 403
            assert await push(hs, 5, "hs_new") == 200
            assert await push(hs, 6, "hs_newer") == 200
            await bot.until(lambda: len(bot.events) == 6)
        text = one.log.read_text()
    assert [event["event_id"] for event in bot.events] == [f"${n}" for n in range(1, 7)]
    shown = [request.token for request in bot.requests if request.path.count("transactions")]
    assert shown[0] == "hs_bot"
    assert "hs_bot" not in shown[1:]
    assert "relay.former_token" in text
    assert not any(token in text for token in ("hs_bot", "hs_new"))


async def test_without_a_time_of_grace_the_former_token_is_refused_at_once(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        files = with_tokens(write_files(tmp_path, database, [registration("bot", bot.url)]))
        change(files, token_grace_seconds=0)
        async with worker_process(files), operator(files) as op, homeserver(files) as hs:
            await rotated(op, files, bot.url, "hs_new")
            assert await push(hs, 1, "hs_bot") == 403
            assert await push(hs, 1, "hs_new") == 200
    assert await pg.fetchval("select count(*) from appservice_bridge.appservice_token") == 2


@pytest.fixture
def former() -> Tokens:
    return Tokens(registered(("bot", "@b_.*")).registrations)


async def test_a_token_that_comes_back_is_in_force_and_its_successor_is_former(
    db: Database, former: Tokens
) -> None:
    one = registered(("bot", "@b_.*")).registrations["bot"]
    other = dataclasses.replace(one, as_token="as_other")
    for current in (one, other, one):
        async with db.transaction() as conn:
            await tokens.announce(conn, [current], grace_seconds=60)
            found = await tokens.former(conn)
    assert [each.kind for each in found] == [TokenKind.AS_TOKEN]
    former.accept(found, now=100.0)
    assert former.of_as_token(one.as_token.encode(), now=100.0) == "bot"
    assert former.of_as_token(b"as_other", now=100.0) == "bot"
    assert former.of_as_token(b"as_other", now=161.0) is None
    assert former.of_as_token(one.hs_token.encode(), now=100.0) is None
    assert former.of_as_token(b"", now=100.0) is None
