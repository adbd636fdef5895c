"""The homeserver's side, in a process of its own: `python -m tests.faults.sender FILE`.

Every stream is sent in order, and each transaction or batch again until it is answered 200, as a
homeserver does it. What was answered is written down, and only that counts. SIGTERM lets it
finish what it has begun.
"""

import asyncio
import dataclasses
import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import orjson
import uvloop

from tests.faults import capturing
from tests.faults.streams import POISON, Accepted, appservice_of, event, message, user_of
from tests.support.ingesting import batch_of, signed

TIMEOUT: Final = aiohttp.ClientTimeout(total=8, connect=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is to be sent.

    Attributes:
        log: file that grows by a line per answer.
        relays: base URLs of the workers; one that does not answer is followed by another.
        streams: their names say how, and for whom.
        batch: facts in one transaction.
        every_seconds: how long each stream waits between two; about.
        relays_seldom: so many times longer those of room events wait.
        most: facts of one stream at most.
        repeats: how probable it is that one is sent twice at once, or once more later.
        poison_every: every so-many-th event is one that its appservice refuses; 0: none.
        database: where captures are written.
    """

    log: str
    relays: Sequence[str]
    streams: Sequence[str]
    seed: int
    batch: int = 100
    every_seconds: float = 0.5
    relays_seldom: float = 1.0
    most: int = 1_000_000
    repeats: float = 0.0
    poison_every: int = 0
    database: str = ""

    def save(self, path: Path) -> None:
        path.write_bytes(orjson.dumps(dataclasses.asdict(self)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is sent until it is answered."""

    path: str
    body: bytes
    token: str


class Sender:
    """The program itself."""

    def __init__(self, task: Task, http: aiohttp.ClientSession, stop: asyncio.Event) -> None:
        self._task = task
        self._http = http
        self._stop = stop
        self._log = os.open(task.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._once_more: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for stream in self._task.streams:
                group.create_task(self._send_stream(stream))
        await asyncio.gather(*self._once_more)

    async def _send_stream(self, stream: str) -> None:
        chance = random.Random(f"{self._task.seed} {stream}")
        capture = None
        if stream.startswith("capture-"):
            capture = capturing.Capture(self._task.database, stream)
        pause = self._task.every_seconds
        if stream.startswith("relay-"):
            pause *= self._task.relays_seldom
        first = 1
        while not self._stop.is_set() and first <= self._task.most:
            last = first + self._task.batch - 1
            if capture is not None:
                await capture.insert(first, last)
            else:
                await self._send(request_for(self._task, stream, first, last), chance)
            done = Accepted(stream=stream, first=first, last=last, at_ns=time.monotonic_ns())
            os.write(self._log, done.line())
            first = last + 1
            await _wait(self._stop, pause * chance.uniform(0.5, 1.5))

    async def _send(self, request: Request, chance: random.Random) -> None:
        """Until it is answered; perhaps twice at once, perhaps once more later."""
        again = chance.random()
        sends = [self._until_answered(request, chance)]
        if again < self._task.repeats / 2:
            sends.append(self._until_answered(request, chance))
        await asyncio.gather(*sends)
        if self._task.repeats / 2 <= again < self._task.repeats:
            later = asyncio.create_task(self._later(request, chance.uniform(0, 4), chance))
            self._once_more.add(later)

    async def _later(self, request: Request, seconds: float, chance: random.Random) -> None:
        await asyncio.sleep(seconds)
        await self._until_answered(request, chance)

    async def _until_answered(self, request: Request, chance: random.Random) -> None:
        while True:
            relay = chance.choice(self._task.relays)
            try:
                async with self._http.put(
                    relay + request.path,
                    data=request.body,
                    headers={"Authorization": f"Bearer {request.token}"},
                ) as response:
                    answer = await response.read()
            except (aiohttp.ClientError, TimeoutError, OSError):
                pass
            else:
                if response.status == 200:
                    return
                if response.status != 503:
                    raise RuntimeError(f"answered {response.status}: {answer[:200]!r}")
            await asyncio.sleep(chance.uniform(0.02, 0.2))


def request_for(task: Task, stream: str, first: int, last: int) -> Request:
    """The same request for the same numbers, always."""
    if stream.startswith("ingest-"):
        return _batch(stream, first, last)
    kinds = {number: _kind(task, number) for number in range(first, last + 1)}
    events = [event(stream, number, kind) for number, kind in kinds.items()]
    appservice = appservice_of(stream)
    return Request(
        path=f"/appservice/{appservice}/_matrix/app/v1/transactions/{stream}-{first}",
        body=orjson.dumps({"events": events}),
        token=f"hs_{appservice}",
    )


def _kind(task: Task, number: int) -> str:
    return POISON if task.poison_every and number % task.poison_every == 0 else "m.fault"


def _batch(stream: str, first: int, last: int) -> Request:
    name = f"{stream}/{first}"
    facts = [_to_device(stream, number) for number in range(first, last + 1)]
    return Request(
        path=f"/_appservice_bridge/v1/facts/{quote(name, safe='')}",
        body=json.dumps(signed(batch_of(name, *facts))).encode(),
        token="",
    )


def _to_device(stream: str, number: int) -> dict[str, Any]:
    whom = {"kind": "to_device", "to_user_id": user_of(stream), "to_device_id": "DEV"}
    return whom | message(stream, number)


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return


async def main(task: Task) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=TIMEOUT) as http:
        await Sender(task, http, stop).run()


if __name__ == "__main__":
    uvloop.run(main(Task(**orjson.loads(Path(sys.argv[1]).read_bytes()))))
