"""An appservice that is a process of its own: it can be killed, and its log stays.

`python -m tests.homeserver.receiver PORT LOG [FAULTS]`: each request and each answer is one line
of LOG, written before the answer is given.
"""

import asyncio
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import uvloop
from aiohttp import web

from appservice_bridge.dev.process import ChildCommand, ChildProcess
from tests.support.load import KIND, Received, read_log

FIELDS = ("de.sorunome.msc2409.to_device", "to_device")


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How it misbehaves.

    Attributes:
        refuse_every: the first attempt of every so-many-th transaction is answered 500; 0: none.
        delay_seconds: how long it works before each answer.
    """

    refuse_every: int = 0
    delay_seconds: float = 0.0


@dataclass(slots=True)
class Receiver:
    """An appservice process; start it again, on the same port and log, after it was stopped."""

    port: int
    log: Path
    faults: Faults = field(default_factory=Faults)
    _child: ChildProcess | None = field(default=None, init=False)

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        arguments = [str(self.port), str(self.log), json.dumps(asdict(self.faults))]
        child = ChildProcess.start(
            ChildCommand(
                name="receiver",
                arguments=[sys.executable, "-m", "tests.homeserver.receiver", *arguments],
                log=self.log.with_suffix(".err"),
                directory=Path(__file__).parents[2],
            )
        )
        self._child = child
        async with asyncio.timeout(20), aiohttp.ClientSession() as http:
            while True:
                child.require_running()
                try:
                    async with http.get(f"http://127.0.0.1:{self.port}/"):
                        return
                except aiohttp.ClientError:
                    await asyncio.sleep(0.05)

    def kill(self) -> None:
        """End it at once, in the middle of whatever it does."""
        if self._child is not None and self._child.running:
            os.kill(self._child.pid, signal.SIGKILL)
            self._child.wait()

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()

    def received(self) -> list[Received]:
        return read_log(self.log)

    async def until_quiet(self, run: str, count: int, *, within: float, quiet: float = 2.0) -> None:
        """Wait until `count` messages of a run were taken, or nothing came for some seconds."""
        deadline, last, moved = time.monotonic() + within, -1, time.monotonic()
        while time.monotonic() < deadline:
            log = self.received()
            answered = {each.txn_id for each in log if each.status == 200}
            found = {
                message
                for each in log
                if each.txn_id in answered
                for message in each.messages
                if message[0] == run
            }
            if len(found) >= count:
                return
            if len(found) != last:
                last, moved = len(found), time.monotonic()
            elif time.monotonic() > moved + quiet:
                return
            await asyncio.sleep(0.2)


@asynccontextmanager
async def receiver(port: int, log: Path, faults: Faults | None = None) -> AsyncIterator[Receiver]:
    """Run it for as long as the context lasts."""
    one = Receiver(port, log, faults or Faults())
    try:
        await one.start()
        yield one
    finally:
        one.stop()


class Server:
    """The program itself."""

    def __init__(self, log: Path, faults: Faults) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._faults = faults
        self._known = {each.txn_id for each in read_log(log)}

    def application(self) -> web.Application:
        app = web.Application(client_max_size=2**30)
        app.router.add_put("/_matrix/app/v1/transactions/{txn_id}", self._transaction)
        app.router.add_get("/", self._alive)
        return app

    async def _alive(self, _request: web.Request) -> web.Response:
        return web.json_response({})

    async def _transaction(self, request: web.Request) -> web.Response:
        body = await request.read()
        at_ns = time.monotonic_ns()
        txn_id = request.match_info["txn_id"]
        came = Received(
            at_ns=at_ns,
            txn_id=txn_id,
            digest=hashlib.sha256(body).hexdigest(),
            status=None,
            messages=_messages(body),
        )
        self._write(came)
        status = self._status(txn_id)
        if self._faults.delay_seconds:
            await asyncio.sleep(self._faults.delay_seconds)
        self._write(Received(at_ns=time.monotonic_ns(), txn_id=txn_id, digest="", status=status))
        return web.Response(status=status, body=b"{}", content_type="application/json")

    def _status(self, txn_id: str) -> int:
        if txn_id in self._known:
            return 200
        self._known.add(txn_id)
        every = self._faults.refuse_every
        return 500 if every and len(self._known) % every == 0 else 200

    def _write(self, what: Received) -> None:
        """One write per line: what was written survives a kill."""
        os.write(self._log, orjson.dumps(what) + b"\n")


def _messages(body: bytes) -> tuple[tuple[str, str, int], ...]:
    document = orjson.loads(body)
    items: list[dict[str, Any]] = next((document[key] for key in FIELDS if key in document), [])
    return tuple(
        (item["content"]["run"], item["sender"], item["content"]["number"])
        for item in items
        if item["type"] == KIND
    )


async def serve(port: int, server: Server) -> None:
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(
        serve(int(sys.argv[1]), Server(Path(sys.argv[2]), Faults(**json.loads(sys.argv[3]))))
    )
