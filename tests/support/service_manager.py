"""The side of systemd that hears what a service says: a datagram socket, and what came on it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

WITHIN_SECONDS: Final = 60.0


@dataclass(kw_only=True)
class Manager:
    """What systemd would hear."""

    heard: list[dict[str, str]] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    async def hears(self, **said: str) -> dict[str, str]:
        """Wait for the next message that says this; what came before it is forgotten."""
        async with asyncio.timeout(WITHIN_SECONDS):
            while True:
                while self.heard:
                    one = self.heard.pop(0)
                    if said.items() <= one.items():
                        return one
                self.came.clear()
                await self.came.wait()


@asynccontextmanager
async def manager(address: str) -> AsyncIterator[Manager]:
    """Listen at an address until the context ends; `NOTIFY_SOCKET` names it."""
    loop, one = asyncio.get_running_loop(), Manager()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        listening.setblocking(False)

        def hear() -> None:
            lines = listening.recv(4096).decode().split("\n")
            one.heard.append(dict(line.split("=", 1) for line in lines))
            one.came.set()

        loop.add_reader(listening, hear)
        try:
            yield one
        finally:
            loop.remove_reader(listening)
