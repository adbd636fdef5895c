"""The homeserver's own transactions, a hundred events each: taken durably, and delivered."""

import asyncio
import json
import time
from typing import Final

import aiohttp

from appservice_bridge.bench.figures import Side
from appservice_bridge.bench.filling import appservice
from appservice_bridge.bench.receiver import Order
from appservice_bridge.bench.scenario import MEMORY, Figures, Scenario
from appservice_bridge.bench.stage import Running, Stage

APPSERVICES: Final = 8
EVENTS: Final = 100
_FILLING: Final = "x" * 650  # with what is around it about 1 KB


def transaction(owner: str, number: int) -> bytes:
    """A body as Synapse sends it; no event of it is in another."""
    events = [
        {
            "type": "m.room.encrypted",
            "event_id": f"${owner}_{number}_{place}",
            "room_id": "!room:example.org",
            "sender": "@alice:example.org",
            "origin_server_ts": 1_700_000_000_000,
            "content": {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": _FILLING},
            "unsigned": {"age": 17},
        }
        for place in range(EVENTS)
    ]
    return json.dumps({"events": events}, separators=(",", ":")).encode()


async def _send_all(
    session: aiohttp.ClientSession, worker: Running, owner: str, count: int
) -> None:
    """One at a time, as Synapse does for each appservice.

    Raises:
        ClientResponseError: the relay did not take one.
    """
    path = f"{worker.relay_url}/appservice/{owner}/_matrix/app/v1/transactions"
    headers = {"Authorization": f"Bearer hs_{owner}", "Content-Type": "application/json"}
    for number in range(count):
        body = transaction(owner, number)
        async with session.put(f"{path}/{number}", data=body, headers=headers) as answer:
            answer.raise_for_status()


async def _bridge(stage: Stage) -> Figures:
    each = stage.size(100, quick=10)
    events = each * EVENTS * APPSERVICES
    await stage.receivers.order(Order(marker='"event_id"'))
    async with (
        stage.database() as dsn,
        stage.worker(dsn, APPSERVICES) as worker,
        aiohttp.ClientSession() as session,
    ):
        began = time.monotonic_ns()
        async with asyncio.TaskGroup() as group:
            for number in range(APPSERVICES):
                group.create_task(_send_all(session, worker, appservice(number), each))
        accepted = (time.monotonic_ns() - began) / 1e9
        await stage.until(events, worker)
        delivered = ((await stage.receivers.seen()).last_ns - began) / 1e9
        return {
            "": events / accepted,
            "delivered": events / delivered,
            MEMORY: worker.peak_memory_mb(),
        }


SCENARIOS: Final = (
    Scenario(
        name="relay-in",
        about=f"the homeserver's transactions of {EVENTS} events, for {APPSERVICES} appservices",
        units={"": "events/s", "delivered": "events/s", MEMORY: "MB"},
        sides={Side.BRIDGE: _bridge},
        quick=True,
    ),
)
