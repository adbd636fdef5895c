"""A lane over the appservice's own websocket: the promises are those of every lane."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientConnectionResetError

from appservice_bridge.delivery.websocket_sender import frame, reply_to
from tests.support.appservice import appservice
from tests.support.bridge import registration, worker, worker_process, write_files
from tests.support.connecting import (
    PATH,
    connected,
    files_for,
    transaction_of,
    wait_until,
)
from tests.support.facts import Connection, capture, message, relay

BOT = "@b_1:example.org"
ACKED = "select acked_to = {} from appservice_bridge.lane"
SEALED = "appservice_bridge.sealed where appservice_id = 'bot'"
BOTS = "from appservice_bridge.lane where appservice_id = 'bot'"
FREE = "select worker_id is null from appservice_bridge.lane"


async def test_a_transaction_is_sent_as_mautrix_bridges_read_it(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "auto", "websocket")
    async with worker(files), connected(files) as bot:
        await relay(pg, "bot", "$1")
        await bot.until(lambda: len(bot.frames) == 1)
        await wait_until(pg, ACKED.format(1))
    seen = bot.transactions[0]
    assert seen.pop("txn_id").startswith("ab")
    assert seen == {
        "id": 1,
        "command": "transaction",
        "status": "ok",
        "events": [{"event_id": "$1", "type": "m"}],
    }


def test_a_frame_holds_the_transaction_s_own_bytes() -> None:
    body = b'{"events":[{"a": 1.0,"b":"\\ud800"}]}'
    sent = frame(7, "ab1-2", body)
    assert sent == b'{"id":7,"command":"transaction","status":"ok","txn_id":"ab1-2",' + body[1:]


async def test_the_next_is_not_sent_before_the_one_in_flight_is_acknowledged(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "websocket", delivery={"max_items": 1})
    async with worker(files), connected(files, answers=False) as bot:
        for n in range(1, 4):
            await capture(pg, BOT, n)
        await bot.until(lambda: len(bot.frames) == 1)
        await asyncio.sleep(0.7)
        assert len(bot.frames) == 1
        bot.answers = True
        await bot.ack(bot.transactions[0])
        await bot.until(lambda: len(bot.frames) == 3)
        await wait_until(pg, ACKED.format(3))
    assert bot.numbers == [1, 2, 3]


@pytest.mark.parametrize("url", [None, "websocket", "http://127.0.0.1:9"])
async def test_no_url_is_needed_and_none_is_asked(
    pg: Connection, database: str, tmp_path: Path, url: str | None
) -> None:
    async with appservice() as unasked:
        files = files_for(
            tmp_path, database, "websocket", unasked.url if url and "http" in url else url
        )
        async with worker(files):
            await capture(pg, BOT, 1)
            await wait_until(pg, "select position = 1 from appservice_bridge.outbox_head")
            await asyncio.sleep(0.7)
            assert await pg.fetchval(FREE)
            async with connected(files) as bot:
                await bot.until(lambda: bot.numbers == [1])
    assert unasked.requests == []


async def test_after_a_reconnect_what_was_not_acknowledged_comes_again_byte_for_byte(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "websocket")
    async with worker(files):
        await capture(pg, BOT, 1)
        async with connected(files, answers=False) as first:
            await first.until(lambda: len(first.frames) == 1)
        await capture(pg, BOT, 2)
        await wait_until(pg, FREE)
        async with connected(files) as second:
            await second.until(lambda: second.numbers == [1, 2])
    lost, again = first.transactions[0], second.transactions[0]
    assert lost["txn_id"] == again["txn_id"]
    assert transaction_of(first.frames[0]) == transaction_of(second.frames[0])


async def test_a_hundred_connects_in_a_row_lose_double_and_reorder_nothing(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    facts, frames = 300, list[str]()
    files = files_for(tmp_path, database, "websocket", delivery={"max_items": 2})
    async with worker(files):
        for n in range(1, facts + 1):
            await capture(pg, BOT, n)
        for turn in range(100):
            async with connected(files) as bot:
                await bot.until(lambda: len(bot.frames) >= 1)
                if turn % 3:  # others are replaced by the next, in the midst of it all
                    await bot.websocket.close()
            frames += bot.frames
            if await pg.fetchval(ACKED.format(facts)):
                break
        else:
            async with connected(files) as bot:
                await wait_until(pg, ACKED.format(facts))
            frames += bot.frames
    bodies: dict[str, str] = {}
    for one in frames:
        txn_id = json.loads(one)["txn_id"]
        assert bodies.setdefault(txn_id, transaction_of(one)) == transaction_of(one)
    seen = [item["content"]["n"] for body in bodies.values() for item in items(body)]
    assert seen == list(range(1, facts + 1))


def items(body: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(body).get("de.sorunome.msc2409.to_device", [])
    return found


async def test_a_newer_connection_replaces_the_older_with_4001(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "websocket")
    async with worker(files), connected(files, answers=False) as older:
        await capture(pg, BOT, 1)
        await older.until(lambda: len(older.frames) == 1)
        async with connected(files) as newer:
            assert await older.closed() == 4001
            await newer.until(lambda: newer.numbers == [1])
            await capture(pg, BOT, 2)
            await newer.until(lambda: newer.numbers == [1, 2])
        assert transaction_of(older.frames[0]) == transaction_of(newer.frames[0])


async def test_a_newer_connection_to_another_worker_replaces_the_older_with_4001(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    first, second = (files_for(tmp_path / name, database, "websocket") for name in ("a", "b"))
    async with (
        worker_process(first),
        worker_process(second),
        connected(first, answers=False) as older,
    ):
        await capture(pg, BOT, 1)
        await older.until(lambda: len(older.frames) == 1)
        async with connected(second) as newer:
            assert await older.closed() == 4001
            await newer.until(lambda: newer.numbers == [1])
            await capture(pg, BOT, 2)
            await newer.until(lambda: newer.numbers == [1, 2])
            await wait_until(pg, ACKED.format(2))
    assert transaction_of(older.frames[0]) == transaction_of(newer.frames[0])


async def test_an_ack_over_the_older_connection_counts_no_more(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    first, second = (files_for(tmp_path / name, database, "websocket") for name in ("a", "b"))
    async with worker(first), worker_process(second), connected(first, answers=False) as older:
        await capture(pg, BOT, 1)
        await older.until(lambda: len(older.frames) == 1)
        async with connected(second, answers=False) as newer:
            await newer.until(lambda: len(newer.frames) == 1)
            with suppress(ClientConnectionResetError):  # it may be closed already
                await older.ack(older.transactions[0])
            assert await older.closed() == 4001
            assert await pg.fetchval(ACKED.format(0))
            await newer.ack(newer.transactions[0])
            await wait_until(pg, ACKED.format(1))


async def test_a_transaction_that_is_not_acknowledged_in_time_closes_with_4002(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "websocket", delivery={"timeout_seconds": 0.4})
    async with worker(files):
        await capture(pg, BOT, 1)
        async with connected(files, answers=False) as bot:
            assert await bot.closed() == 4002
        await wait_until(pg, "select last_outcome = 'timeout' from appservice_bridge.lane")
        async with connected(files) as again:
            await again.until(lambda: again.numbers == [1])
    assert transaction_of(bot.frames[0]) == transaction_of(again.frames[0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": 2},
        {"id": True},
        {"id": "1"},
        {"data": {"txn_id": "ab1-1"}},
        {"data": {}},
        {"data": None},
        {"command": "transaction"},
        {"command": "Response"},
    ],
)
async def test_an_answer_that_does_not_name_what_is_in_flight_is_no_ack(
    pg: Connection, database: str, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    files = files_for(tmp_path, database, "websocket")
    async with worker(files), connected(files, answers=False) as bot:
        await capture(pg, BOT, 1)
        await bot.until(lambda: len(bot.frames) == 1)
        right = {"id": 1, "command": "response", "data": {"txn_id": bot.transactions[0]["txn_id"]}}
        await bot.say(right | wrong)
        await asyncio.sleep(0.3)
        assert await pg.fetchval(ACKED.format(0))
        await bot.say(right)
        await wait_until(pg, ACKED.format(1))


async def test_an_error_is_a_refusal_and_the_same_comes_again(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "websocket")
    async with worker(files), connected(files, answers=False) as bot:
        await capture(pg, BOT, 1)
        await bot.until(lambda: len(bot.frames) == 1)
        no = {"code": "M_UNKNOWN", "message": "not now"}
        await bot.say({"id": 1, "command": "error", "data": no})
        await bot.until(lambda: len(bot.frames) == 2)
        assert await pg.fetchval("select last_outcome from appservice_bridge.lane") == "M_UNKNOWN"
        await bot.ack(bot.transactions[1])
        await wait_until(pg, ACKED.format(1))
    assert transaction_of(bot.frames[0]) == transaction_of(bot.frames[1])
    assert await pg.fetchval("select count(*) from appservice_bridge.dead_letter") == 0


async def test_a_connect_ends_a_rest(pg: Connection, database: str, tmp_path: Path) -> None:
    patient = {"backoff": {"first_seconds": 300, "ceiling_seconds": 300}}
    files = files_for(tmp_path, database, "websocket", delivery=patient)
    async with worker(files):
        await capture(pg, BOT, 1)
        async with connected(files, answers=False) as bot:
            await bot.until(lambda: len(bot.frames) == 1)
            await bot.say({"id": 1, "command": "error", "data": {}})
            await wait_until(pg, "select failed_attempts = 1 from appservice_bridge.lane")
        async with connected(files) as again:
            await again.until(lambda: again.numbers == [1])


async def test_a_ping_is_answered_and_another_command_is_an_error(
    database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "websocket")
    async with worker(files), connected(files) as bot:
        await bot.say({"id": 5, "command": "ping", "data": {"timestamp": 1}})
        await bot.say({"id": 6, "command": "bridge_status", "data": {}})
        await bot.say({"id": 7})
        await bot.until(lambda: len(bot.other) == 3)
    ping, unknown, nothing = bot.other
    assert (ping["id"], ping["command"]) == (5, "response")
    assert abs(ping["data"]["timestamp"] / 1000 - time.time()) < 60
    assert (unknown["id"], unknown["command"]) == (6, "error")
    assert unknown["data"]["code"] == "M_UNRECOGNIZED"
    assert (nothing["id"], nothing["command"]) == (7, "error")


@pytest.mark.parametrize(
    "message", [{"command": "ping"}, {"id": 0, "command": "x"}, {"id": 3, "command": "response"}]
)
def test_what_wants_no_answer_gets_none(message: dict[str, Any]) -> None:
    assert reply_to(message) is None


async def test_sigterm_waits_for_the_answer_and_closes_with_1001(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "websocket")
    async with worker_process(files) as stopped, connected(files, answers=False) as bot:
        await capture(pg, BOT, 1)
        await bot.until(lambda: len(bot.frames) == 1)
        ended = asyncio.create_task(stopped.terminate())
        await asyncio.sleep(0.5)
        await bot.ack(bot.transactions[0])
        assert await bot.closed() == 1001
        assert await ended == 0
    assert await pg.fetchval(ACKED.format(1))
    assert await pg.fetchval(FREE)


async def test_case_14_killed_with_a_transaction_in_flight_it_sends_the_same_again(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = files_for(tmp_path, database, "websocket")
    async with worker_process(files) as killed:
        async with connected(files, answers=False) as bot:
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.frames) == 1)
            await killed.kill()
            await capture(pg, BOT, 2)
            await bot.closed()
        await pg.execute("update appservice_bridge.worker set alive_until = now() + '50 s'")
        await killed.start()  # the dead one's lease need not run out: a connect takes the lane
        async with connected(files) as again:
            await again.until(lambda: again.numbers == [1, 2], within=25)
    assert transaction_of(bot.frames[0]) == transaction_of(again.frames[0])


@pytest.mark.parametrize(
    ("token", "transport", "status", "errcode"),
    [
        (None, "websocket", 401, "M_MISSING_TOKEN"),
        ("as_nobody", "websocket", 401, "M_UNKNOWN_TOKEN"),
        ("hs_bot", "websocket", 401, "M_UNKNOWN_TOKEN"),
        ("as_bot", "poll", 403, "M_FORBIDDEN"),
        ("as_bot", "none", 403, "M_FORBIDDEN"),
        ("as_bot", "websocket", 400, "M_UNRECOGNIZED"),  # right, but it asks for no websocket
    ],
)
async def test_who_may_not_connect_is_told_why(
    database: str, tmp_path: Path, token: str | None, transport: str, status: int, errcode: str
) -> None:
    files = files_for(tmp_path, database, transport)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with (
        worker(files),
        aiohttp.ClientSession() as session,
        session.get(files.relay_url + PATH, headers=headers) as answer,
    ):
        told = await answer.json()
    assert (answer.status, told["errcode"]) == (status, errcode)
    if status == 403:
        assert "appservices.bot.transport to websocket" in told["error"]


async def test_a_peer_that_answers_no_heartbeat_loses_the_lane(
    pg: Connection, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appservice_bridge.http.as_sync.HEARTBEAT_SECONDS", 0.4)
    files = files_for(tmp_path, database, "websocket")
    async with worker(files), aiohttp.ClientSession() as session:
        headers = {"Authorization": "Bearer as_bot"}
        async with session.ws_connect(files.relay_url + PATH, headers=headers, autoping=False):
            await wait_until(pg, "select worker_id is not null from appservice_bridge.lane")
            await wait_until(pg, FREE)
        monkeypatch.setattr("appservice_bridge.http.as_sync.HEARTBEAT_SECONDS", 2.0)
        async with session.ws_connect(
            files.relay_url + PATH, headers=headers, autoping=False
        ) as alive:
            for _ in range(2):
                asked = await alive.receive()
                assert asked.type is aiohttp.WSMsgType.PING
                await alive.pong(asked.data)
            assert not await pg.fetchval(FREE)


async def test_a_peer_that_does_not_read_holds_nobody_up(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as healthy:
        files = write_files(
            tmp_path,
            database,
            [
                registration("bot", None, users=["@b_.*"]),
                registration("well", healthy.url, users=["@w_.*"]),
            ],
            appservices={"bot": {"transport": "websocket", "timeout_seconds": 15}},
            delivery={"max_body_bytes": 50_000_000},
        )
        async with worker(files):
            for n in range(1, 301):
                await capture(pg, BOT, n, message(n=n, x="x" * 60_000).encode())
            await wait_until(pg, "select count(*) = 300 from appservice_bridge.outbox")
            async with deaf(files.relay_url, "as_bot"):
                await wait_until(pg, f"select exists (select from {SEALED})")
                for n in range(1000, 1010):
                    seen = len(healthy.to_device)
                    await capture(pg, "@w_1:example.org", n)
                    await pg.execute("select pg_notify('appservice_bridge_capture', '')")
                    await healthy.until(lambda: len(healthy.to_device) > seen)  # noqa: B023
                assert await pg.fetchval(f"select last_outcome is null {BOTS}")  # it still waits
                await wait_until(pg, f"select last_outcome = 'timeout' {BOTS}")
                await wait_until(pg, f"select worker_id is null {BOTS}")


@asynccontextmanager
async def deaf(relay_url: str, token: str) -> AsyncIterator[None]:
    """Connects, and reads nothing but the first bytes of the answer."""
    port = int(relay_url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(
        f"GET {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n".encode()
    )
    assert b" 101 " in await reader.readline()
    yield
    writer.close()
