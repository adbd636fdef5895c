"""A TCP proxy on loopback whose connections can be cut, stalled and half closed."""

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from appservice_bridge.dev.ports import LoopbackPort

CHUNK_BYTES: Final = 65_536
RESET: Final = struct.pack("ii", 1, 0)
COMMIT: Final = b"COMMIT;"
IN_NO_TRANSACTION: Final = b"Z\0\0\0\x05I"  # ReadyForQuery, and idle
IN_TRANSACTION: Final = b"Z\0\0\0\x05T"
BIND: Final = b"B"  # how it goes on with a statement that was prepared


class Connection:
    """One connection through the proxy: client and server, both ways.

    Attributes:
        in_transaction: what Postgres said last of it.
    """

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.in_transaction = False

    def commits(self, chunk: bytes) -> bool:
        """Whether this, on its way to Postgres, ends a DB transaction or is one."""
        return COMMIT in chunk or (chunk.startswith(BIND) and not self.in_transaction)

    def answered(self, chunk: bytes) -> None:
        if chunk.endswith((IN_TRANSACTION, IN_NO_TRANSACTION)):
            self.in_transaction = chunk.endswith(IN_TRANSACTION)

    def cut(self, *, reset: bool) -> None:
        """End both sides at once, with or without a reset."""
        for side in (self.client, self.server):
            if reset and (sock := side.get_extra_info("socket")) is not None:
                with suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            side.transport.abort() if reset else side.close()

    def half_close(self) -> None:
        """No more comes from the client; what the server still says gets through."""
        with suppress(OSError, RuntimeError):
            self.server.write_eof()


class Proxy:
    """Passes bytes on from its port to another one.

    Attributes:
        flows: cleared, nothing gets through until it is set again.
        cuts_commits: how probable it is that a connection is cut when a COMMIT passes, or a
            statement that is a DB transaction: before it gets through, or after it and before its
            answer.
    """

    def __init__(self, target_port: int, chance: random.Random) -> None:
        self.port = LoopbackPort()
        self.flows = asyncio.Event()
        self.flows.set()
        self.cuts_commits = 0.0
        self.cuts = 0
        self._target_port = target_port
        self._chance = chance
        self._open: set[Connection] = set()
        self._serving: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port.number)
        try:
            yield self
        finally:
            server.close()
            self.flows.set()
            self.cut_all(reset=True)
            await asyncio.gather(*self._serving, return_exceptions=True)
            self.port.release()

    def cut_some(self, *, reset: bool) -> None:
        """About half of what is open."""
        self._to_some(lambda one: one.cut(reset=reset))

    def half_close_some(self) -> None:
        self._to_some(Connection.half_close)

    def cut_all(self, *, reset: bool) -> None:
        for one in list(self._open):
            one.cut(reset=reset)

    def _to_some(self, do: Callable[[Connection], None]) -> None:
        for one in list(self._open):
            if self._chance.random() < 0.5:
                self.cuts += 1
                do(one)

    def _accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, client))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            from_server, server = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            client.transport.abort()
            return
        one = Connection(client, server)
        self._open.add(one)
        try:
            there = asyncio.create_task(self._pass(reader, one, server))
            back = asyncio.create_task(self._pass(from_server, one, client))
            await asyncio.wait({there, back}, return_when=asyncio.ALL_COMPLETED)
        finally:
            self._open.discard(one)
            one.cut(reset=False)

    async def _pass(
        self, reader: asyncio.StreamReader, one: Connection, to: asyncio.StreamWriter
    ) -> None:
        try:
            while chunk := await reader.read(CHUNK_BYTES):
                await self.flows.wait()
                if to is one.client:
                    one.answered(chunk)
                elif one.commits(chunk) and self._cuts_here():
                    if self._chance.random() < 0.5:
                        to.write(chunk)
                        await to.drain()
                    self.cuts += 1
                    one.cut(reset=True)
                    return
                to.write(chunk)
                await to.drain()
            to.write_eof()
        except (OSError, RuntimeError):
            one.cut(reset=True)

    def _cuts_here(self) -> bool:
        return self._chance.random() < self.cuts_commits
