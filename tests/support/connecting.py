"""Appservices that come to the bridge: over the websocket of mautrix bridges, or by asking.

Nothing on PyPI speaks the appservice's side of `fi.mau.as_sync` (mautrix 0.21.1 does not), so this
is a client written to the protocol as mautrix-go speaks it: every transaction is answered with its
own id and txn_id, and a frame without a command is a transaction, too.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from tests.support.bridge import Files, registration, write_files
from tests.support.facts import Connection

PATH: Final = "/_matrix/client/unstable/fi.mau.as_sync"
POLL: Final = "/_appservice_bridge/v1/transactions"
TO_DEVICE: Final = "de.sorunome.msc2409.to_device"


def files_for(
    directory: Any, database: str, transport: str, url: str | None = None, **settings: Any
) -> Files:
    """A worker's files, with one appservice `bot` of this transport."""
    return write_files(
        directory,
        database,
        [registration("bot", url, users=["@b_.*"])],
        appservices={"bot": {"transport": transport}},
        **settings,
    )


def transaction_of(frame: str) -> str:
    """The bytes of the transaction, without what is the frame's own."""
    return "{" + frame.partition('"txn_id":')[2].partition(",")[2]


def numbers_in(transaction: dict[str, Any]) -> list[int]:
    return [item["content"]["n"] for item in transaction.get(TO_DEVICE, [])]


@dataclass(kw_only=True)
class Socket:
    """One connection; what came over it, and what is answered."""

    websocket: aiohttp.ClientWebSocketResponse
    frames: list[str] = field(default_factory=list)
    answers: bool = True
    other: list[dict[str, Any]] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    task: asyncio.Task[None] | None = None
    looked_at: int = 0

    async def next(self) -> dict[str, Any]:
        """The next transaction that `next` has not returned yet."""
        await self.until(lambda: len(self.frames) > self.looked_at)
        self.looked_at += 1
        return self.transactions[self.looked_at - 1]

    @property
    def transactions(self) -> list[dict[str, Any]]:
        return [json.loads(frame) for frame in self.frames]

    @property
    def numbers(self) -> list[int]:
        first = {one["txn_id"]: one for one in reversed(self.transactions)}
        ordered = sorted(first.values(), key=lambda one: int(one["id"]))
        return [n for one in ordered for n in numbers_in(one)]

    async def read(self) -> None:
        async for message in self.websocket:
            heard = json.loads(message.data)
            if heard.get("command") in ("response", "error"):
                self.other.append(heard)
            else:
                self.frames.append(message.data)
                if self.answers:
                    await self.ack(heard)
            async with self.changed:
                self.changed.notify_all()
        async with self.changed:
            self.changed.notify_all()

    async def ack(self, transaction: dict[str, Any]) -> None:
        data = {"txn_id": transaction["txn_id"]}
        await self.say({"id": transaction["id"], "command": "response", "data": data})

    async def say(self, message: Any) -> None:
        await self.websocket.send_str(json.dumps(message))

    async def until(self, condition: Callable[[], bool], within: float = 60.0) -> None:
        async with asyncio.timeout(within), self.changed:
            await self.changed.wait_for(condition)

    async def closed(self, within: float = 60.0) -> int | None:
        """The code that it was closed with."""
        assert self.task is not None
        await asyncio.wait_for(asyncio.shield(self.task), within)
        return self.websocket.close_code


@asynccontextmanager
async def connected(
    files: Files, *, answers: bool = True, token: str = "as_bot", **more: Any
) -> AsyncIterator[Socket]:
    """Connect as a mautrix bridge does."""
    headers = {"Authorization": f"Bearer {token}", "X-Mautrix-Websocket-Version": "3"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.ws_connect(files.relay_url + PATH, max_msg_size=0, **more) as websocket,
    ):
        one = Socket(websocket=websocket, answers=answers)
        one.task = asyncio.create_task(one.read())
        try:
            yield one
        finally:
            one.task.cancel()


@dataclass(frozen=True, slots=True, kw_only=True)
class Polled:
    """What an appservice that asks was answered."""

    status: int
    body: bytes

    @property
    def txn_id(self) -> str:
        found: str = json.loads(self.body)["txn_id"]
        return found

    @property
    def numbers(self) -> list[int]:
        return numbers_in(json.loads(self.body)["transaction"])

    @property
    def errcode(self) -> str:
        found: str = json.loads(self.body)["errcode"]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Poller:
    """Asks as a bot does."""

    session: aiohttp.ClientSession
    root: str

    async def next(self, seconds: float | str = 60) -> Polled:
        async with self.session.get(f"{self.root}/next", params={"timeout": seconds}) as answer:
            return Polled(status=answer.status, body=await answer.read())

    async def ack(self, txn_id: str) -> int:
        async with self.session.put(f"{self.root}/{txn_id}/ack") as answer:
            await answer.read()
            return answer.status


@asynccontextmanager
async def polling(files: Files, token: str = "as_bot") -> AsyncIterator[Poller]:
    """A bot that asks the worker of these files."""
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:
        yield Poller(session=session, root=files.relay_url + POLL)


async def wait_until(pg: Connection, query: str, within: float = 60.0) -> None:
    """Until a query's one value is true."""
    async with asyncio.timeout(within):
        while not await pg.fetchval(query):
            await asyncio.sleep(0.02)
