"""How the bench speaks with the process of receivers."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from appservice_bridge.bench.receiver import Order, Seen, encode
from appservice_bridge.dev.ports import LoopbackPort
from appservice_bridge.dev.process import ChildCommand, ChildProcess


@dataclass(slots=True)
class Receivers:
    """All appservices of a bench, in one process."""

    log: Path
    port: LoopbackPort = field(default_factory=LoopbackPort)
    _session: aiohttp.ClientSession | None = None

    def url(self, name: str) -> str:
        """Where the appservice of this name is."""
        return f"{self.port.url}/{name}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run them for as long as the context lasts."""
        module = "appservice_bridge.bench.receiver"
        child = ChildProcess.start(
            ChildCommand(
                name="receivers",
                arguments=[sys.executable, "-m", module, str(self.port.number)],
                log=self.log,
            )
        )
        try:
            async with aiohttp.ClientSession() as self._session:
                await self._until_there(child)
                yield
        finally:
            child.stop()
            self.port.release()

    async def _until_there(self, child: ChildProcess) -> None:
        while True:
            child.require_running()
            try:
                await self.seen()
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)
            else:
                return

    async def order(self, order: Order) -> None:
        """Forget what was seen, and behave like this from now on."""
        session = self._open_session()
        async with session.post(f"{self.port.url}/bench/order", data=encode(order)) as answer:
            answer.raise_for_status()

    async def seen(self) -> Seen:
        """What came since the last order."""
        return Seen(**await self._get("seen"))

    async def took_ms(self, since_ns: Mapping[int, int] | None = None) -> list[float]:
        """How long each message took, where the order was to note it.

        From when it was sent, or from what that time is mapped to.
        """
        arrived = await self._get("arrived")
        return [(came - (since_ns[sent] if since_ns else sent)) / 1e6 for sent, came in arrived]

    async def _get(self, what: str) -> Any:
        async with self._open_session().get(f"{self.port.url}/bench/{what}") as answer:
            return await answer.json()

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the receivers do not run")
        return self._session
