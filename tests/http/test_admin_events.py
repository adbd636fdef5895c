"""The stream of events at the admin port: everyone sees what was computed once."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from appservice_bridge.http import admin_events
from appservice_bridge.http.admin_events import Events
from appservice_bridge.storage.database import DatabaseUnavailableError
from tests.support.bridge import registration, worker, write_files
from tests.support.facts import Connection
from tests.support.reloading import ROOT, with_tokens

PATH: Final = ROOT + "/events"


class Counted:
    """A body that says how often it was asked for."""

    def __init__(self) -> None:
        self.times = 0
        self.fails = False

    async def __call__(self) -> bytes:
        self.times += 1
        if self.fails:
            raise DatabaseUnavailableError("away")
        return b'{"n":%d}' % self.times


@asynccontextmanager
async def streaming(
    body: Counted,
) -> AsyncIterator[tuple[TestClient[Any, Any], asyncio.Event, Events]]:
    """The stream alone, behind a real port, until the context ends or the event is set."""
    events, stop = Events(body), asyncio.Event()
    app = web.Application()
    app.router.add_get("/", events.stream)
    async with TestClient(TestServer(app)) as client, asyncio.TaskGroup() as group:
        group.create_task(events.run(stop))
        try:
            yield client, stop, events
        finally:
            stop.set()


async def next_event(response: aiohttp.ClientResponse) -> str:
    """The next block of lines."""
    lines = []
    async with asyncio.timeout(30):
        while (line := await response.content.readline()) not in {b"\n", b""}:
            lines.append(line.decode().rstrip("\n"))
    return "\n".join(lines)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_events, "EVERY_SECONDS", 0.05)


async def test_nothing_is_computed_while_nobody_listens() -> None:
    body = Counted()
    async with streaming(body) as (client, _, events):
        async with client.get("/") as response:
            await next_event(response)
        async with asyncio.timeout(30):
            while events._listeners:
                await asyncio.sleep(0.01)
        before = body.times
        await asyncio.sleep(0.3)
        assert body.times <= before + 1  # one may have been under way


async def test_all_who_listen_get_the_same_and_it_is_computed_once() -> None:
    async with (
        streaming(Counted()) as (client, _, _),
        client.get("/") as one,
        client.get("/") as other,
    ):
        seen = [[await next_event(each) for each in (one, other)] for _ in range(10)]
    firsts, others = zip(*seen, strict=True)
    assert set(firsts) & set(others)
    assert all(event.startswith("event: overview\ndata: {") for event in firsts)


async def test_while_the_database_is_away_only_the_heart_beats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admin_events, "HEARTBEAT_SECONDS", 0.05)
    body = Counted()
    body.fails = True
    async with streaming(body) as (client, _, _), client.get("/") as response:
        assert await next_event(response) == ": still here"
        body.fails = False
        while (event := await next_event(response)) == ": still here":
            pass
        assert event.startswith("event: overview")


async def test_too_many_are_refused_and_one_who_leaves_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admin_events, "MOST_LISTENERS", 1)
    async with streaming(Counted()) as (client, _, _):
        async with client.get("/") as first:
            await next_event(first)
            async with client.get("/") as second:
                assert second.status == 429
                assert (await second.json())["errcode"] == "M_LIMIT_EXCEEDED"
        async with asyncio.timeout(30):
            while (await client.get("/")).status != 200:
                await asyncio.sleep(0.01)


async def test_the_stream_ends_when_the_worker_stops_and_when_the_token_must_be_shown_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with streaming(Counted()) as (client, stop, _), client.get("/") as response:
        await next_event(response)
        stop.set()
        async with asyncio.timeout(30):
            await response.read()
    monkeypatch.setattr(admin_events, "LONGEST_SECONDS", 0.2)
    async with streaming(Counted()) as (client, _, _), client.get("/") as response:
        async with asyncio.timeout(30):
            await response.read()


async def test_the_stream_tells_what_the_list_tells(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = with_tokens(write_files(tmp_path, database, [registration("bot", None)]))
    url = files.admin_url + PATH
    shown = {"Authorization": "Bearer secret-viewer"}
    async with worker(files), aiohttp.ClientSession() as session:
        assert (await session.get(url)).status == 401
        async with session.get(url, headers=shown) as response:
            assert response.headers["Content-Type"] == "text/event-stream"
            assert response.headers["Cache-Control"] == "no-store"
            assert "Access-Control-Allow-Origin" not in response.headers
            told = json.loads((await next_event(response)).partition("data: ")[2])
        listed = await session.get(files.admin_url + ROOT + "/appservices", headers=shown)
        assert told.keys() == (await listed.json()).keys()
        assert [one["id"] for one in told["appservices"]] == ["bot"]
