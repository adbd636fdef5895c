"""An appservice that misbehaves: `python -m tests.faults.hostile MODE FILE`.

| mode | what it does |
|---|---|
| slow | reads and answers by drops |
| hang | never answers |
| flood | answers 500 with a body that does not end |
| huge-head | answers with headers that do not end |
| garbage | answers what is no HTTP |
| early | answers 200 before it read the body |
| reset | answers 200, and resets the connection |
| wrong-length | answers 200 and promises a longer body than it gives |
| refuse | answers 500, and 429 with a Retry-After of a day |
"""

import asyncio
import random
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import orjson
import uvloop

from tests.faults.receiver import Log, Manners
from tests.support.appservice import Serve

OK: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
RESET: Final = struct.pack("ii", 1, 0)
MOST_CHUNKS: Final = 20_000


class Exchange:
    """One request and what is said to it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, log: Log):
        self._reader = reader
        self.writer = writer
        self._log = log
        self.txn_id: str | None = None
        self._length = 0

    async def head(self) -> None:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        before, _, last = head.split(" ")[1].rpartition("/")
        self.txn_id = last if before.endswith("/transactions") else None  # else it is a ping
        _, _, length = head.lower().partition("\r\ncontent-length:")
        self._length = int(length.partition("\r\n")[0])

    async def body(self) -> None:
        """Read it, and write down what came."""
        body = await self._reader.readexactly(self._length)
        if self.txn_id is not None:
            self._log.came(self.txn_id, body)

    async def say(self, answer: bytes, *, status: int | None = None) -> None:
        """What counts as an answer is written down before it is given."""
        if status is not None and self.txn_id is not None:
            self._log.answers(self.txn_id, status)
        self.writer.write(answer)
        await self.writer.drain()

    def reset(self) -> None:
        if (sock := self.writer.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.writer.transport.abort()


async def slow(one: Exchange) -> None:
    await one.body()
    await asyncio.sleep(random.uniform(0, 3))
    await one.say(OK[:20], status=200)
    await asyncio.sleep(random.uniform(0, 1))
    await one.say(OK[20:])


async def hang(one: Exchange) -> None:
    await one.body()
    await asyncio.sleep(3600)


async def flood(one: Exchange) -> None:
    await one.body()
    await one.say(b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n", status=500)
    for _ in range(MOST_CHUNKS):
        await one.say(b"10000\r\n" + bytes(65_536) + b"\r\n")


async def huge_head(one: Exchange) -> None:
    await one.body()
    await one.say(b"HTTP/1.1 500 X\r\n", status=500)
    for number in range(MOST_CHUNKS):
        await one.say(b"X-%d: " % number + b"x" * 1000 + b"\r\n")


async def garbage(one: Exchange) -> None:
    await one.body()
    await one.say(random.randbytes(random.randint(1, 4000)), status=500)
    one.writer.close()


async def early(one: Exchange) -> None:
    await one.say(OK, status=200)
    with suppress(asyncio.IncompleteReadError):
        await one.body()


async def reset(one: Exchange) -> None:
    await one.body()
    await one.say(OK, status=200)
    one.reset()


async def wrong_length(one: Exchange) -> None:
    await one.body()
    await one.say(OK.replace(b"Length: 2", b"Length: 2000000"), status=200)
    await asyncio.sleep(random.uniform(0, 0.5))
    one.writer.close()


async def refuse(one: Exchange) -> None:
    await one.body()
    answer = random.choice((b"500 X\r\n", b"429 X\r\nRetry-After: 86400\r\n"))
    await one.say(b"HTTP/1.1 " + answer + b"Content-Length: 0\r\n\r\n", status=int(answer[:3]))


MODES: Final[Mapping[str, Callable[[Exchange], Awaitable[None]]]] = {
    "slow": slow,
    "hang": hang,
    "flood": flood,
    "huge-head": huge_head,
    "garbage": garbage,
    "early": early,
    "reset": reset,
    "wrong-length": wrong_length,
    "refuse": refuse,
}


def answering(mode: str, log: Log) -> Serve:
    """Serves a connection in this mode, and writes down what came."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                one = Exchange(reader, writer, log)
                await one.head()
                await MODES[mode](one)
        writer.close()

    return answer


async def serve(mode: str, manners: Manners) -> None:
    answer = answering(mode, Log(manners.log))
    await asyncio.start_server(answer, "127.0.0.1", manners.port, limit=2**20)
    await asyncio.Event().wait()


if __name__ == "__main__":
    given = Manners(**orjson.loads(Path(sys.argv[2]).read_bytes()))
    uvloop.run(serve(sys.argv[1], given))
