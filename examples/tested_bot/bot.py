"""The bot that is tested: encrypted, and says again what it hears. In its place stands yours.

As a process of its own it finds homeserver and tokens in an env.json:

    python bot.py PATH/env.json my-echo-bot PORT
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from appservice_bridge.dev.echo_bot import BotSettings, EchoBot


@asynccontextmanager
async def running(settings: BotSettings, port: int = 0) -> AsyncIterator[str]:
    """The bot while it runs; its url."""
    async with aiohttp.ClientSession() as http:
        bot = EchoBot(settings, http)
        runner = web.AppRunner(bot.app(), shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        host, port = runner.addresses[0][:2]
        work = asyncio.create_task(bot.run())
        await bot.announce()
        try:
            yield f"http://{host}:{port}"
        finally:
            work.cancel()
            await runner.cleanup()


def settings_from(env_file: Path, appservice_id: str) -> BotSettings:
    """Who the bot is, from an env.json."""
    env = json.loads(env_file.read_text())
    appservice = env["appservices"][appservice_id]
    return BotSettings(
        homeserver_url=env["homeserver_url"],
        user_id=f"@{appservice['sender_localpart']}:{env['server_name']}",
        as_token=appservice["as_token"],
        hs_token=appservice["hs_token"],
    )


async def _main(env_file: str, appservice_id: str, port: str) -> None:
    async with running(settings_from(Path(env_file), appservice_id), int(port)) as url:
        print(f"listening on {url}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
