"""An aiohttp application on a loopback port."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from appservice_bridge.dev.ports import LoopbackPort


@asynccontextmanager
async def serving(app: web.Application, port: LoopbackPort) -> AsyncIterator[None]:
    """Serve the application while the block runs."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port.number, reuse_address=True).start()
        yield
    finally:
        await runner.cleanup()
