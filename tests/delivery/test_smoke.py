"""One message through a worker."""

from pathlib import Path

import aiohttp
import asyncpg

from tests.support.appservice import appservice
from tests.support.bridge import registration, worker, write_files


async def capture(pg: "asyncpg.Connection", user: str, stream_id: int, body: bytes) -> None:
    await pg.execute(
        "insert into appservice_bridge.capture_log (kind, user_id, device_id, stream_id, body)"
        " values ('to_device', $1, 'DEV', $2, $3)",
        user,
        stream_id,
        body,
    )


async def test_a_captured_message_and_a_relayed_event_arrive_in_order(
    pg: "asyncpg.Connection", database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with worker(files), aiohttp.ClientSession() as session:
            await capture(
                pg, "@b_1:example.org", 1, b'{"type":"t","sender":"@x:example.org","content":{}}'
            )
            async with session.put(
                files.relay("bot", "/_matrix/app/v1/transactions/1"),
                json={"events": [{"event_id": "$1", "type": "m"}], "ephemeral": [{"type": "m.typing"}]},
                headers={"Authorization": "Bearer hs_bot"},
            ) as response:
                assert response.status == 200
            await bot.until(lambda: len(bot.events) == 1)
    assert bot.to_device == [
        {"to_user_id": "@b_1:example.org", "to_device_id": "DEV", "type": "t",
         "sender": "@x:example.org", "content": {}}
    ]
    assert bot.events == [{"event_id": "$1", "type": "m"}]
    assert bot.items("ephemeral") == [{"type": "m.typing"}]
