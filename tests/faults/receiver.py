"""An appservice in a process of its own: `python -m tests.faults.receiver FILE`.

Every request and every answer is a line of its log before the answer is given, so that what it
said survives it.
"""

import asyncio
import dataclasses
import hashlib
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import uvloop
from aiohttp import web

from tests.faults.streams import POISON, Came, named

FIELDS: Final = ("events", "de.sorunome.msc2409.to_device", "to_device")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manners:
    """How it behaves.

    Attributes:
        log: file that grows by a line per request and per answer.
        delay_seconds: how long it works before it answers.
        dies: how probable it is that it kills itself between working and answering.
        refuses: how probable it is that it answers 500.
        poison: answer 400 to whatever holds an item of that type.
        most_items: answer 413 beyond so many; 0: never.
    """

    port: int
    log: str
    delay_seconds: float = 0.0
    dies: float = 0.0
    refuses: float = 0.0
    poison: bool = False
    most_items: int = 0

    def save(self, path: Path) -> None:
        path.write_bytes(orjson.dumps(dataclasses.asdict(self)))


class Log:
    """Lines that survive the process."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(self._file, b"\n")  # the line before may be half

    def came(self, txn_id: str, body: bytes) -> list[dict[str, Any]]:
        """Write down a request; returns its items."""
        document = orjson.loads(body)
        items = [item for name in FIELDS for item in document.get(name, ())]
        self._write(
            Came(
                at_ns=time.monotonic_ns(),
                txn_id=txn_id,
                digest=hashlib.sha256(body).hexdigest()[:32],
                items=[named(item) for item in items if "stream" in item["content"]],
            )
        )
        return items

    def answers(self, txn_id: str, status: int) -> None:
        """Write down what it is about to be answered."""
        self._write(Came(at_ns=time.monotonic_ns(), txn_id=txn_id, status=status))

    def _write(self, what: Came) -> None:
        os.write(self._file, what.line())


class Receiver:
    """The program itself."""

    def __init__(self, manners: Manners) -> None:
        self._manners = manners
        self._log = Log(manners.log)

    def application(self) -> web.Application:
        app = web.Application(client_max_size=2**30)
        app.router.add_put("/_matrix/app/v1/transactions/{txn_id}", self._transaction)
        app.router.add_route("*", "/{tail:.*}", self._alive)
        return app

    async def _alive(self, _request: web.Request) -> web.Response:
        return web.json_response({})

    async def _transaction(self, request: web.Request) -> web.Response:
        body = await request.read()
        txn_id = request.match_info["txn_id"]
        items = self._log.came(txn_id, body)
        if self._manners.delay_seconds:
            await asyncio.sleep(self._manners.delay_seconds)
        status = self._status(items)
        self._log.answers(txn_id, status)
        if random.random() < self._manners.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return web.Response(status=status, body=b"{}", content_type="application/json")

    def _status(self, items: list[dict[str, Any]]) -> int:
        manners = self._manners
        if random.random() < manners.refuses:
            return 500
        if manners.most_items and len(items) > manners.most_items:
            return 413
        if manners.poison and any(item["type"] == POISON for item in items):
            return 400
        return 200


async def serve(manners: Manners) -> None:
    runner = web.AppRunner(Receiver(manners).application(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", manners.port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(Manners(**orjson.loads(Path(sys.argv[1]).read_bytes()))))
