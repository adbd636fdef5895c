"""Which of the hosts of a DSN is asked, while other connections find that out as well."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from appservice_bridge.storage import hosts
from appservice_bridge.storage.hosts import Hosts


@asynccontextmanager
async def swallowing() -> AsyncIterator[str]:
    """A host that takes connections and says nothing."""

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    yield "{}:{}".format(*server.sockets[0].getsockname())
    server.close()


async def test_whoever_tries_a_dead_host_while_another_finds_the_live_one_finds_it_too(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "CONNECT_SECONDS", 4)
    parts = urlsplit(database)
    user, at, live = parts.netloc.rpartition("@")
    async with swallowing() as dead:
        both = Hosts(parts._replace(netloc=f"{user}{at}{dead},{live}").geturl())
        first = asyncio.create_task(both.connect())
        await asyncio.sleep(1)
        for connecting in (asyncio.create_task(both.connect()), first):
            await (await connecting).close()
