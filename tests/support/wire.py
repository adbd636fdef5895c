"""Bytes on the wire: a cable that can be cut, a server that keeps what it is sent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Cable:
    """Forwards a loopback port to another; while it is cut nobody answers there.

    While `flows` is clear it carries nothing, and neither end is told.
    """

    target_port: int
    port: int = 0
    flows: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            far = await asyncio.open_connection("127.0.0.1", self.target_port)
            ends = {writer, far[1]}
            self._writers |= ends
            try:
                await asyncio.gather(
                    _pump(reader, far[1], self.flows), _pump(far[0], writer, self.flows)
                )
            finally:
                self._writers -= ends
                for end in ends:
                    end.close()


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flows: asyncio.Event
) -> None:
    with suppress(OSError):
        while chunk := await reader.read(65536):
            await flows.wait()
            writer.write(chunk)
            await writer.drain()
    writer.transport.abort()


@asynccontextmanager
async def cable(target_port: int) -> AsyncIterator[Cable]:
    """A whole cable, cut when the context ends."""
    one = Cable(target_port=target_port)
    one.flows.set()
    await one.mend()
    try:
        yield one
    finally:
        await one.cut()


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """One request, byte for byte."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass(kw_only=True)
class RawServer:
    """Takes one request per connection and answers `answer`; None: never."""

    url: str = ""
    heard: list[Heard] = field(default_factory=list)
    answer: bytes | None = b""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = [line.split(": ", 1) for line in head[1:] if line]
        headers = {name.lower(): value for name, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.heard.append(Heard(line=head[0], headers=headers, body=body))
        if self.answer is None:
            await asyncio.sleep(3600)
        else:
            writer.write(self.answer)
            with suppress(OSError):
                await writer.drain()
        writer.close()


def answer_of(status: str, body: bytes, *headers: str) -> bytes:
    """An answer as it goes over the wire."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


@asynccontextmanager
async def raw_server() -> AsyncIterator[RawServer]:
    """Listen on loopback for as long as the context lasts."""
    one = RawServer()
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(one.handle(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    one.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield one
    finally:
        server.close()
        for task in tasks:
            task.cancel()
