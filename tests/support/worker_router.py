"""Sends each request to the worker that serves it, as the web server before a Synapse does.

`python -m tests.support.worker_router PORT MAIN CLIENT WRITER`, the last three base URLs. Which
path belongs to whom is in Synapse's own guide to workers: what a client says of its devices enters
at the worker that writes those streams (another one answers 500 to a to-device message), what
administrators do at the main process. A message that another server sends enters at any worker,
and so does a login, which makes a device: those reach the writer by replication.
"""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from typing import Final

import aiohttp
import uvloop
from aiohttp import web
from yarl import URL

WRITER: Final = re.compile(
    r"/_matrix/client/[^/]+/"
    r"(sendToDevice/|devices\b|delete_devices$|keys/(upload|device_signing|signatures)\b)"
)
MAIN: Final = re.compile(r"/_synapse/")
PASSED_ON: Final = ("Authorization", "Content-Type")
LARGEST_BODY_BYTES: Final = 2**26
OUT_OF_REACH: Final = b'{"errcode": "M_UNKNOWN", "error": "the worker is not there"}'


class Router:
    """The program itself."""

    def __init__(self, main: str, client: str, writer: str) -> None:
        self._workers = {MAIN: main, WRITER: writer}
        self._client = client
        self._http: aiohttp.ClientSession | None = None

    def application(self) -> web.Application:
        app = web.Application(client_max_size=LARGEST_BODY_BYTES)
        app.cleanup_ctx.append(self._session)
        app.router.add_get("/health", self._alive)
        app.router.add_route("*", "/{tail:.*}", self._pass_on)
        return app

    async def _session(self, _app: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as self._http:
            yield

    def _worker(self, path: str) -> str:
        for pattern, url in self._workers.items():
            if pattern.match(path):
                return url
        return self._client

    async def _alive(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _pass_on(self, request: web.Request) -> web.Response:
        assert self._http is not None
        raw = request.raw_path
        try:
            async with self._http.request(
                request.method,
                URL(self._worker(raw) + raw, encoded=True),
                data=await request.read(),
                headers={
                    name: request.headers[name] for name in PASSED_ON if name in request.headers
                },
                allow_redirects=False,
            ) as answer:
                body = await answer.read()
        except aiohttp.ClientError:
            return web.Response(status=502, body=OUT_OF_REACH, content_type="application/json")
        return web.Response(status=answer.status, body=body, content_type=answer.content_type)


async def serve(port: int, router: Router) -> None:
    runner = web.AppRunner(router.application(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), Router(*sys.argv[2:])))
