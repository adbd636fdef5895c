"""The admin port alone, on a test's database; nobody delivers behind it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from appservice_bridge.cli.context import owners
from appservice_bridge.cli.worker import operators
from appservice_bridge.delivery.history import History
from appservice_bridge.domain.reloading import Reloads, Unchanged
from appservice_bridge.http.admin import Admin
from appservice_bridge.http.admin_auth import AdminAuth
from appservice_bridge.storage.database import Database
from tests.support.bridge import Files


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """What is asked at it, by whomever; paths go over the wire as they are written."""

    app: web.Application
    client: TestClient[Any, Any]
    history: History

    async def ask(
        self, method: str, path: str, role: str | None = "admin", body: Any = None
    ) -> aiohttp.ClientResponse:
        shown = {} if role is None else {"Authorization": f"Bearer secret-{role}"}
        url = URL(str(self.client.make_url("/")).rstrip("/") + path, encoded=True)
        return await self.client.session.request(method, url, headers=shown, json=body)


@asynccontextmanager
async def admin_port(files: Files, database: Database) -> AsyncIterator[Port]:
    """The port, with whoever answers reloads: nothing ever changed."""
    of, reloads, history, stop = files.load(), Reloads(), History(), asyncio.Event()

    async def reload_in_vain() -> None:
        while True:
            await reloads.begin()
            reloads.finish(Unchanged())

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        admin = Admin(
            database,
            lambda: True,
            of=of,
            auth=AdminAuth(operators(of)),
            reloads=reloads,
            history=history,
            owners=owners(of),
            session=session,
        )
        app = admin.application()
        reloading = group.create_task(reload_in_vain())
        running = group.create_task(admin.run(stop))
        async with TestClient(TestServer(app)) as client:
            try:
                yield Port(app=app, client=client, history=history)
            finally:
                stop.set()
                reloading.cancel()
                await running
