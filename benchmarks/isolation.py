"""What bad appservices cost the good ones, and how soon one that was away has everything.

    python -m benchmarks.isolation [--rounds 7] [--seconds 10] [--waiting 100000] [--in-memory]

Fifty appservices, one to-device message of about 1 KB at a time. In one window of each round half
of them hang, flood, reset or refuse; in one they are good with the same traffic, in one nothing
comes for them. Sender, worker, and the receivers of either half are processes of their own; times
are CLOCK_MONOTONIC, from before the insert to the receiver. A ratio compares windows of one round;
the median, least and most of all rounds are shown.

Then one appservice is away while messages wait, and pings. Postgres really syncs, unless told
otherwise.
"""

import argparse
import asyncio
import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import asyncpg
import orjson
import psutil  # type: ignore[import-untyped]
import uvloop
from aiohttp import web

from appservice_bridge.dev.ports import LoopbackPort
from appservice_bridge.dev.postgres import EmbeddedPostgres
from appservice_bridge.storage.migrations import migrate
from tests.support.bridge import Files, registration, worker_process, write_files
from tests.support.homeserver import postgres_on_disk
from tests.support.workers import pid

HALF: Final = 25
EACH_PER_SECOND: Final = 1.0
MANNERS: Final = ("hang", "flood", "reset", "refuse")
PAYLOAD: Final = "x" * 900
TO_DEVICE: Final = "de.sorunome.msc2409.to_device"
KINDS: Final = ("absent", "good", "bad")
GOALS: Final = {"p50": 1.3, "p99": 2.0}

SEND: Final = """
with sent as (
    insert into appservice_bridge.capture_log (kind, user_id, device_id, stream_id, body)
    values ('to_device', $1, 'DEV', $2, $3)
)
select pg_notify('appservice_bridge_capture', '')
"""
FILL: Final = """
insert into appservice_bridge.capture_log (kind, user_id, device_id, stream_id, body)
select 'to_device', '@away_1:example.org', 'DEV', n,
       convert_to(replace($2, '"#"', n::text), 'UTF8')
  from generate_series(1, $1::int) n
"""
END_RESTS: Final = """
update appservice_bridge.lane set due_at = '-infinity', woken_at = clock_timestamp()
"""
BEHIND: Final = """
select count(*) from appservice_bridge.lane l join appservice_bridge.outbox_head h
 using (appservice_id) where h.position > l.acked_to and l.appservice_id like $1
"""
ROUTED: Final = """
select position from appservice_bridge.outbox_head where appservice_id = 'away'
"""


def message(number: int | str) -> str:
    content = {"n": number, "at": time.monotonic_ns(), "payload": PAYLOAD}
    return json.dumps({"content": content, "type": "m.load", "sender": "@a:example.org"})


@dataclass(slots=True)
class Receivers:
    """Appservices of one half, in a process of their own; the path says which.

    Attributes:
        bad: whether each has its own bad manner now.
        seen: name, number, seconds from the insert, and when it came.
    """

    bad: bool = False
    seen: list[tuple[str, int, float, int]] = field(default_factory=list)
    known: set[tuple[str, str]] = field(default_factory=set)
    good_again: asyncio.Event = field(default_factory=asyncio.Event)

    def application(self) -> web.Application:
        app = web.Application(client_max_size=2**30)
        app.router.add_put("/{name}/_matrix/app/v1/transactions/{txn}", self._transaction)
        app.router.add_post("/{name}/_matrix/app/v1/ping", self._ping)
        app.router.add_post("/bad/{word}", self._switch)
        app.router.add_post("/take", self._take)
        return app

    async def _transaction(self, request: web.Request) -> web.StreamResponse:
        now = time.monotonic_ns()
        name = request.match_info["name"]
        body = await request.read()
        if self.bad:
            return await self._misbehave(request, _manner(name))
        if (name, request.match_info["txn"]) not in self.known:
            self.known.add((name, request.match_info["txn"]))
            for item in orjson.loads(body).get(TO_DEVICE, []):
                content = item["content"]
                self.seen.append((name, content["n"], (now - content["at"]) / 1e9, now))
        return web.json_response({})

    async def _misbehave(self, request: web.Request, manner: str) -> web.StreamResponse:
        match manner:
            case "hang":
                await self.good_again.wait()
            case "flood":
                answer = web.StreamResponse(status=500)
                await answer.prepare(request)
                with suppress(ConnectionError, aiohttp.ClientError):
                    for _ in range(2000):
                        await answer.write(b"x" * 65536)
                return answer
            case "reset":
                assert request.transport is not None
                request.transport.abort()
        return web.Response(status=500)

    async def _ping(self, _request: web.Request) -> web.Response:
        return web.json_response({})

    async def _switch(self, request: web.Request) -> web.Response:
        self.bad = request.match_info["word"] == "on"
        if self.bad:
            self.good_again.clear()
        else:
            self.good_again.set()
        return web.Response()

    async def _take(self, _request: web.Request) -> web.Response:
        seen, self.seen = self.seen, []
        return web.Response(body=orjson.dumps(seen))


def _manner(name: str) -> str:
    number = name.removeprefix("bad")
    return MANNERS[int(number) % len(MANNERS)] if number.isdecimal() else "refuse"


async def receive(port: int) -> None:
    runner = web.AppRunner(Receivers().application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Half:
    """How the sender speaks with a process of receivers."""

    url: str
    session: aiohttp.ClientSession

    async def behave(self, *, badly: bool) -> None:
        async with self.session.post(f"{self.url}/bad/{'on' if badly else 'off'}"):
            pass

    async def take(self) -> list[tuple[str, int, float, int]]:
        async with self.session.post(f"{self.url}/take") as answer:
            seen: list[tuple[str, int, float, int]] = orjson.loads(await answer.read())
            return seen


@asynccontextmanager
async def half(session: aiohttp.ClientSession) -> AsyncIterator[Half]:
    port = LoopbackPort()
    port.release()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.isolation", "--receive", str(port.number))
    )
    try:
        one = Half(url=port.url, session=session)
        for _ in range(300):
            try:
                await one.take()
                break
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)
        yield one
    finally:
        process.kill()
        await process.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of the good ones in one window, in milliseconds; and how long the worker used a core."""

    p50: float
    p99: float
    longest: float
    messages: int
    busy_seconds: float

    def __str__(self) -> str:
        times = f"p50 {self.p50:.1f}, p99 {self.p99:.1f}, longest {self.longest:.0f} ms"
        return f"{times} ({self.messages}; {self.busy_seconds:.1f} s of CPU)"


class Bench:
    """The sender, and what it asks of the others."""

    def __init__(
        self, pools: "Sequence[asyncpg.Pool[asyncpg.Record]]", good: Half, bad: Half, worker: int
    ) -> None:
        self._worker = psutil.Process(worker)
        self._pool, self._other_pool = pools  # the good never wait for a connection of the bad
        self._good = good
        self._bad = bad
        self._number = 0

    async def window(self, seconds: float, others: str) -> Figures:
        """One window; the others are absent, good or bad."""
        await self._bad.behave(badly=others == "bad")
        await self._good.take()
        busy = self._busy_seconds()
        async with asyncio.TaskGroup() as group:
            for n in range(HALF):
                group.create_task(self._feed(self._pool, f"good{n}", n, seconds))
                if others != "absent":
                    group.create_task(self._feed(self._other_pool, f"bad{n}", n, seconds))
        await self._until_taken("good%")
        busy = self._busy_seconds() - busy
        seen = await self._good.take()
        await self._bad.behave(badly=False)
        await self._until_taken("bad%")
        return _figures([late for _, _, late, _ in seen], busy)

    def _busy_seconds(self) -> float:
        times = self._worker.cpu_times()
        return float(times.user + times.system)

    async def _feed(
        self, pool: "asyncpg.Pool[asyncpg.Record]", name: str, place: int, seconds: float
    ) -> None:
        """One at a time, so that the lanes are out of step with each other."""
        loop = asyncio.get_running_loop()
        began = loop.time() + place / HALF / EACH_PER_SECOND
        for turn in range(int(seconds * EACH_PER_SECOND)):
            await asyncio.sleep(began + turn / EACH_PER_SECOND - loop.time())
            self._number += 1
            number = self._number
            async with pool.acquire() as conn:
                body = message(number).encode()
                await conn.execute(SEND, f"@{name}_1:example.org", number, body)

    async def _until_taken(self, names: str) -> None:
        while await self._pool.fetchval(BEHIND, names):
            await self._pool.execute(END_RESTS)
            await asyncio.sleep(0.5)


def _figures(late: Sequence[float], busy: float) -> Figures:
    ordered = sorted(1000 * one for one in late)
    return Figures(
        p50=statistics.median(ordered),
        p99=ordered[int(len(ordered) * 0.99)],
        longest=ordered[-1],
        messages=len(ordered),
        busy_seconds=busy,
    )


async def isolation(bench: Bench, rounds: int, seconds: float) -> None:
    """Alternate windows with and without bad ones, and compare those of one round."""
    ratios: dict[tuple[str, str], list[float]] = defaultdict(list)
    longest = 0.0
    await bench.window(3, "bad")  # everything was used once
    for number in range(rounds):
        kinds = KINDS if number % 2 else KINDS[::-1]
        of = {kind: await bench.window(seconds, kind) for kind in kinds}
        longest = max(longest, of["bad"].longest)
        for kind in KINDS:
            print(f"round {number + 1}, others {kind}: {of[kind]}", flush=True)
        for name, other in itertools.product(GOALS, KINDS[:2]):
            ratios[name, other].append(getattr(of["bad"], name) / getattr(of[other], name))
    for (name, other), all_of in ratios.items():
        told = f"{statistics.median(all_of):.2f} ({min(all_of):.2f} to {max(all_of):.2f})"
        print(f"{name}, others bad / {other}: {told}; wanted at most {GOALS[name]}")
    print(f"longest that a good one waited: {longest:.0f} ms; wanted under 1000")


async def comeback(
    conn: "asyncpg.Pool[asyncpg.Record]", files: Files, away: Half, waiting: int
) -> None:
    """An appservice is away while much comes for it, and pings when it is back."""
    await away.behave(badly=True)
    await conn.execute(FILL, waiting, message("#"), timeout=300)
    while await conn.fetchval(ROUTED) < waiting:  # noqa: ASYNC110
        await asyncio.sleep(0.2)
    await asyncio.sleep(10)  # it rests by now
    await away.behave(badly=False)
    await away.take()
    began = time.monotonic_ns()
    await _ping(files)
    came: list[int] = []
    numbers: list[int] = []
    while len(came) < waiting:
        await asyncio.sleep(0.05)
        for _, number, _, at in await away.take():
            came.append(at)
            numbers.append(number)
    in_order = numbers == list(range(1, waiting + 1))
    print(f"first request {(came[0] - began) / 1e6:.0f} ms after the ping; wanted under 1000")
    print(f"{waiting} messages in {(came[-1] - began) / 1e9:.1f} s, in order: {in_order}")


async def _ping(files: Files) -> None:
    headers = {"Authorization": "Bearer hs_away"}
    url = files.relay("away", "/_matrix/app/v1/ping")
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(url, json={"transaction_id": "back"}) as answer,
    ):
        assert answer.status == 200, answer.status


def registrations(good: Half, bad: Half) -> list[dict[str, Any]]:
    named = [(f"good{n}", good) for n in range(HALF)] + [(f"bad{n}", bad) for n in range(HALF)]
    return [
        registration(name, f"{one.url}/{name}", users=[f"@{name}_.*"])
        for name, one in [*named, ("away", bad)]
    ]


@contextmanager
def postgres_in_memory() -> Iterator[EmbeddedPostgres]:
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as name,
        EmbeddedPostgres(Path(name) / "postgres", durable=False) as server,
    ):
        yield server


async def main(rounds: int, seconds: float, waiting: int, *, in_memory: bool) -> None:
    print(f"{platform.machine()}, Python {platform.python_version()}, {rounds} rounds")
    postgres = postgres_in_memory if in_memory else postgres_on_disk
    with tempfile.TemporaryDirectory() as name, postgres() as server:
        async with (
            asyncpg.create_pool(server.dsn(), min_size=4, max_size=4) as pool,
            asyncpg.create_pool(server.dsn(), min_size=4, max_size=4) as other,
            aiohttp.ClientSession() as session,
            half(session) as good,
            half(session) as bad,
        ):
            async with pool.acquire() as conn:
                await migrate(conn)  # type: ignore[arg-type]
            rests = {"backoff": {"first_seconds": 1, "ceiling_seconds": 60}}
            ours = registrations(good, bad)
            files = write_files(Path(name) / "bridge", server.dsn(), ours, delivery=rests)
            async with worker_process(files) as worker:
                if rounds:
                    await isolation(Bench((pool, other), good, bad, pid(worker)), rounds, seconds)
                if waiting:
                    await comeback(pool, files, bad, waiting)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--waiting", type=int, default=100_000)
    parser.add_argument("--in-memory", action="store_true", help="where others keep the disk busy")
    parser.add_argument("--receive", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.receive:
        uvloop.run(receive(given.receive))
    else:
        asyncio.run(main(given.rounds, given.seconds, given.waiting, in_memory=given.in_memory))
