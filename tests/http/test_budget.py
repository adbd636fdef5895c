"""Over the budget the homeserver keeps its transactions, and is woken when there is room again."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from appservice_bridge.domain.budget import Budget
from appservice_bridge.domain.to_device import to_device_item
from appservice_bridge.sources.watchkeeper import Watchkeeper
from appservice_bridge.storage.database import Database
from tests.support.appservice import Appservice, Request, appservice, ok
from tests.support.bridge import registration, worker, write_files
from tests.support.facts import Connection, attach, message, send
from tests.support.relaying import PING, TRANSACTIONS, homeserver
from tests.support.standin import StandIn, standin_homeserver
from tests.support.watching import looked

__all__ = ["looked"]

LIMIT: Final = 1_000_000
PADDING: Final = "x" * 50_000
ROUTED: Final = "select count(*) from appservice_bridge.outbox where appservice_id = 'down'"
KEYS: Final = ROUTED + " and payload = ''"


def event(number: int) -> bytes:
    return b'{"events":[{"event_id":"$%d"}]}' % number


def refuse(_request: Request) -> tuple[int, dict[str, str], bytes]:
    return 503, {}, b""


def refuse_each_once(seen: Appservice) -> Callable[[Request], tuple[int, dict[str, str], bytes]]:
    """Every transaction is refused at its first attempt from now on."""
    known: set[str] = set()

    def answer(request: Request) -> tuple[int, dict[str, str], bytes]:
        first = request.txn_id not in known
        known.add(request.txn_id)
        return refuse(request) if first else ok(request)

    return answer


def wakes(standin: StandIn, appservice_id: str) -> int:
    return sum(f"/{appservice_id}/" in ping.path for ping in standin.pings)


async def until(condition: Callable[[], Any], within: float = 60.0) -> None:
    async with asyncio.timeout(within):
        while not await condition():
            await asyncio.sleep(0.05)


async def test_one_appservice_over_its_budget_is_refused_alone_and_gets_all_in_order_afterwards(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    await attach(pg)
    async with appservice() as down, appservice() as up, standin_homeserver() as standin:
        down.answer = refuse
        both = [
            registration("down", down.url, users=["@d_.*"]),
            registration("up", up.url, users=["@u_.*"]),
        ]
        files = write_files(
            tmp_path,
            database,
            both,
            homeserver_url=standin.url,
            capture="triggers",
            budget={"appservice_bytes": LIMIT},
        )
        async with worker(files), homeserver(files) as hs:
            sent = 0
            for upto in (25, 40):
                while sent < upto:
                    sent += 1
                    await send(pg, "@d_1:example.org", sent, n=sent, padding=PADDING)
                await until(lambda: pg.fetchval(f"select ({ROUTED}) = {sent}"))  # noqa: B023
            assert 15 <= await pg.fetchval(KEYS) <= 20
            assert (await hs.ask("GET", PING, to="down", token="hs_down")).status == 405

            put: dict[str, Any] = {"to": "down", "token": "hs_down", "body": event(1)}
            refused = await hs.ask("PUT", TRANSACTIONS + "1", **put)
            assert (refused.status, refused.errcode) == (503, "M_LIMIT_EXCEEDED")
            assert await hs.push("1", event(2), to="up", token="hs_up") == 200
            await send(pg, "@u_1:example.org", 1, n=1)
            await up.until(lambda: len(up.events) == 1 and len(up.to_device) == 1)
            woken = wakes(standin, "down")
            await asyncio.sleep(1.5)
            assert wakes(standin, "down") == woken

            down.answer = refuse_each_once(down)
            await down.until(lambda: len(down.to_device) == 40)
            await standin.until(lambda: wakes(standin, "down") > woken)
            assert (await hs.ask("PUT", TRANSACTIONS + "1", **put)).status == 200
            await down.until(lambda: len(down.events) == 1)
    taken = down.to_device
    assert [item["content"]["n"] for item in taken] == list(range(1, 41))
    for n in (1, 40):
        item = to_device_item("@d_1:example.org", "DEV", message(n=n, padding=PADDING).encode())
        assert any(item in request.body for request in down.taken)
    bodies: dict[str, set[bytes]] = {}
    for request in down.requests:
        bodies.setdefault(request.txn_id, set()).add(request.body)
    assert {len(found) for found in bodies.values()} == {1}
    assert await pg.fetchval("select count(*) from appservice_bridge.dead_letter") == 0


async def test_over_the_whole_budget_everybody_is_refused_until_there_is_room_again(
    db: Database, database: str, tmp_path: Path, looked: asyncio.Event
) -> None:
    async with appservice() as bot, standin_homeserver() as standin:
        one = [registration("bot", bot.url)]
        files = write_files(tmp_path, database, one, homeserver_url=standin.url)
        async with worker(files), homeserver(files) as hs:
            await standin.until(lambda: wakes(standin, "bot") == 1)
            assert await hs.push("1", event(1)) == 200
            await looked.wait()
            await Watchkeeper(db, Budget(total_bytes=1), reads_synapse=False).look_once()
            refused = await hs.ask("PUT", TRANSACTIONS + "2", body=event(2))
            assert (refused.status, refused.errcode) == (503, "M_LIMIT_EXCEEDED")
            await asyncio.sleep(1.5)
            assert wakes(standin, "bot") == 1
            await Watchkeeper(db, Budget(), reads_synapse=False).look_once()
            await standin.until(lambda: wakes(standin, "bot") == 2)
            assert await hs.push("2", event(2)) == 200
            await bot.until(lambda: len(bot.events) == 2)


async def test_a_worker_says_by_itself_that_the_budget_is_used_up(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    await pg.execute(
        "insert into appservice_bridge.outbox (appservice_id, position, kind, captured_at, payload)"
        " select 'withdrawn', n, 'event', now(), decode(repeat('00', 50000), 'hex')"
        " from generate_series(1, 25) n"
    )
    budget = {"total_bytes": LIMIT, "appservice_bytes": LIMIT}
    async with appservice() as bot:
        one = [registration("bot", bot.url)]
        files = write_files(tmp_path, database, one, budget=budget)
        async with worker(files), homeserver(files) as hs:

            async def is_refused() -> bool:
                return await hs.push("1", event(1)) == 503

            await until(is_refused)


@pytest.mark.parametrize("gone", [False, True])
async def test_without_the_watchs_row_there_is_room(
    pg: Connection, database: str, tmp_path: Path, gone: bool
) -> None:
    if gone:
        await pg.execute("delete from appservice_bridge.capture_watch")
    async with appservice() as bot:
        files = write_files(tmp_path, database, [registration("bot", bot.url)])
        async with worker(files), homeserver(files) as hs:
            assert await hs.push("1", event(1)) == 200
