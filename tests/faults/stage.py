"""Real processes, and a hand on each of them: Postgres, workers, appservices, senders.

Everything is a direct child that dies with this process, and is ended by its pid.
"""

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import aiohttp
import asyncpg
import yaml

from appservice_bridge.dev.ports import LoopbackPort
from appservice_bridge.dev.postgres import EmbeddedPostgres
from appservice_bridge.dev.process import ChildCommand, ChildDiedError, ChildProcess
from appservice_bridge.storage.migrations import migrate
from tests.faults import capturing
from tests.faults.proxy import Proxy
from tests.faults.receiver import Manners
from tests.faults.sender import Task
from tests.support import facts
from tests.support.bridge import SERVER, registration
from tests.support.ingesting import GENERIC
from tests.support.patroni import Patroni

ROOT: Final = Path(__file__).parents[2]
COMMAND_LINE: Final = "appservice_bridge run"
DYING: Final = "tests.faults.dying"
# Little to recover from, and so a short restart.
POSTGRES: Final = {"max_wal_size": "64MB", "shared_buffers": "32MB"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which parts a scenario has.

    Attributes:
        kind: of homeserver: `generic` with relay and ingest, `synapse` with relay and triggers.
        program: what runs a worker: the command line, or `tests.faults.dying`.
        manners: how each appservice behaves that does not simply take everything.
        hostile: appservices that are `tests.faults.hostile`, and in which mode.
        relays_seldom: so many times longer the streams of room events wait between two.
        delivery: settings of the config's section.
        postgres: settings of the server.
    """

    kind: str = "generic"
    workers: int = 3
    appservices: int = 3
    streams: int = 2
    batch: int = 250
    every_seconds: float = 0.3
    relays_seldom: float = 1.0
    repeats: float = 0.0
    poison_every: int = 0
    program: str = COMMAND_LINE
    manners: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    hostile: Mapping[str, str] = field(default_factory=dict)
    delivery: Mapping[str, Any] = field(default_factory=dict)
    postgres: Mapping[str, str] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        return [f"as{n}" for n in range(self.appservices)]

    @property
    def names(self) -> list[str]:
        """The streams: half of them room events, half device messages."""
        other = "ingest" if self.kind == "generic" else "capture"
        ways = ("relay", other)
        return [f"{way}-{one}-{n}" for one in self.ids for way in ways for n in range(self.streams)]


@dataclass(slots=True)
class Part:
    """A process that can be started again after it was killed."""

    name: str
    kind: str
    command: ChildCommand
    child: ChildProcess | None = None
    counted: bool = False  # its death, by whoever killed it

    def start(self) -> None:
        self.counted = False
        self.child = ChildProcess.start(self.command)

    @property
    def running(self) -> bool:
        return self.child is not None and self.child.running

    @property
    def pid(self) -> int:
        assert self.child is not None
        return self.child.pid

    def with_environment(self, **more: str) -> None:
        """From the next start on."""
        environment = {**(self.command.environment or os.environ), **more}
        self.command = replace(self.command, environment=environment)


class Stage:
    """All parts of one run of a scenario, in one directory."""

    def __init__(self, directory: Path, layout: Layout, chance: random.Random) -> None:
        self.directory = directory
        self.layout = layout
        self.chance = chance
        self.kills: Counter[tuple[str, str]] = Counter()
        self.postgres = EmbeddedPostgres(directory / "postgres", {**POSTGRES, **layout.postgres})
        self.cluster: Patroni | None = None  # instead of it, and runs already
        self.database_port: int | None = None  # another one than Postgres' own: a proxy's
        self.real_ports: dict[str, int] = {}
        self.appservice_ports: dict[str, int] = {}  # where workers find appservices: a proxy's
        self.proxies: dict[str, list[Proxy]] = {}
        self.broken: str | None = None
        self.workers: list[Part] = []
        self.receivers: dict[str, Part] = {}
        self.senders: list[Part] = []
        self.relays: list[str] = []
        self._ports: list[LoopbackPort] = []
        for one in layout.ids:
            self.appservice_ports[one] = self.real_ports[one] = self._port().number

    @property
    def dsn(self) -> str:
        """Where the database is."""
        return self.postgres.dsn() if self.cluster is None else self.cluster.dsn()

    async def prepare(self) -> None:
        """The database and every file, before anything but Postgres runs."""
        if self.cluster is None:
            self.postgres.start()
        else:
            await self.cluster.whole()
        pg = await asyncpg.connect(self.dsn)
        try:
            await migrate(pg)
            await capturing.prepare(pg)
            if self.layout.kind == "synapse":
                await facts.attach(pg)
        finally:
            await pg.close()
        for one in self.layout.ids:
            self.receivers[one] = self._receiver(one)

    async def start(self) -> None:
        """Everything but the senders."""
        for number in range(self.layout.workers):
            self.workers.append(self._worker(number))
        for part in (*self.receivers.values(), *self.workers):
            part.start()
        await self.workers_ready()

    async def send(self, within: float = 60.0) -> None:
        """Start a sender for all streams, and wait until it is at work."""
        layout, number = self.layout, len(self.senders)
        task = Task(
            log=str(self.directory / f"sent_{number}.log"),
            relays=self.relays,
            streams=layout.names,
            seed=self.chance.randrange(2**31),
            batch=layout.batch,
            every_seconds=layout.every_seconds,
            relays_seldom=layout.relays_seldom,
            repeats=layout.repeats,
            poison_every=layout.poison_every,
            database=self.dsn,
        )
        file = self.directory / f"sender_{number}.json"
        task.save(file)
        part = self._part(f"sender {number}", "sender", ["tests.faults.sender", str(file)])
        part.start()
        self.senders.append(part)
        async with asyncio.timeout(within):
            await exists(Path(task.log))

    async def workers_ready(self, within: float = 120.0) -> None:
        async with asyncio.timeout(within), aiohttp.ClientSession() as http:
            for number, part in enumerate(self.workers):
                while not await _answers(http, self._admin(number)):
                    if not part.running:
                        part.start()
                    await asyncio.sleep(0.1)

    def kill(self, part: Part, number: signal.Signals = signal.SIGKILL) -> None:
        """A signal to a process of ours, if it still runs; SIGKILL waits for its end."""
        if not part.running:
            return
        os.kill(part.pid, number)
        self.kills[part.kind, number.name] += 1
        if number is signal.SIGKILL and part.child is not None:
            part.child.wait()
            part.counted = True

    def kill_postgres(self) -> None:
        """The postmaster; its sessions end by themselves, and the next start waits for them."""
        child = self.postgres.child
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        self.kills["postgres", "SIGKILL"] += 1

    def start_postgres(self, patience_seconds: float = 60.0) -> None:
        """Again and again: what a killed server left may still hold its port."""
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                return self.postgres.start(patience_seconds=patience_seconds)
            except (ChildDiedError, TimeoutError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def count_deaths(self) -> None:
        """Start whatever ended; count who killed himself, as he was told."""
        for part in (*self.workers, *self.receivers.values()):
            if part.child is None or part.running:
                continue
            if part.child.exit_code == -signal.SIGKILL and not part.counted:
                self.kills[part.kind, "SIGKILL"] += 1
            part.start()  # also who gave up, as `run` does without a database at its start

    def heal(self) -> None:
        """Whatever does not run is started; whatever was stopped goes on."""
        if self.cluster is None and not self.postgres.child.running:
            self.start_postgres()
        for part in (*self.workers, *self.receivers.values()):
            if part.running:
                os.kill(part.pid, signal.SIGCONT)
            else:
                part.start()

    async def finish_sending(self, within: float = 60.0) -> None:
        """Let the senders end what they have begun.

        Raises:
            TimeoutError: something is not taken, however often it is sent.
            ChildDiedError: something was answered neither 200 nor 503.
        """
        for part in self.senders:
            if part.running:
                os.kill(part.pid, signal.SIGTERM)
        deadline = time.monotonic() + within
        for part in self.senders:
            assert part.child is not None
            while part.running:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{part.name} is not answered 200; see {part.command.log}")
                await asyncio.sleep(0.1)
            if part.child.exit_code:
                raise ChildDiedError(part.name, part.child.exit_code, part.command.log)

    def close(self) -> None:
        """End everything, by pid."""
        for part in (*self.senders, *self.workers, *self.receivers.values()):
            if part.child is not None and part.running:
                os.kill(part.pid, signal.SIGKILL)
                part.child.wait()
        self.postgres.stop()
        for port in (*self._ports, self.postgres.port):
            port.release()

    @property
    def sent_logs(self) -> Iterator[Path]:
        return (self.directory / f"sent_{number}.log" for number in range(len(self.senders)))

    def received_log(self, appservice: str) -> Path:
        return self.directory / f"{appservice}.log"

    def behave(self, appservice: str) -> None:
        """From its next start on the appservice simply takes everything."""
        self._manners(appservice, {}).save(self._manners_file(appservice))
        arguments = ["tests.faults.receiver", str(self._manners_file(appservice))]
        old = self.receivers[appservice]
        old.command = replace(old.command, arguments=[sys.executable, "-m", *arguments])

    def _receiver(self, appservice: str) -> Part:
        mode = self.layout.hostile.get(appservice)
        file = self._manners_file(appservice)
        self._manners(appservice, self.layout.manners.get(appservice, {})).save(file)
        program = ["tests.faults.hostile", mode] if mode else ["tests.faults.receiver"]
        return self._part(appservice, "appservice", [*program, str(file)])

    def _manners_file(self, appservice: str) -> Path:
        return self.directory / f"{appservice}.json"

    def _manners(self, appservice: str, more: Mapping[str, Any]) -> Manners:
        port = self.real_ports[appservice]
        return Manners(port=port, log=str(self.received_log(appservice)), **more)

    def _worker(self, number: int) -> Part:
        relay, admin = self._port(), self._port()
        self.relays.append(relay.url)
        document = self._config(relay, admin)
        place = self.directory / f"worker_{number}"
        place.mkdir()
        (place / "bridge.yaml").write_text(yaml.safe_dump(document))
        for one in self.layout.ids:
            url = f"http://127.0.0.1:{self.appservice_ports[one]}"
            users = [f"@{one}_.*:{SERVER}"]
            file = place / f"registration_{one}.yaml"
            file.write_text(yaml.safe_dump(registration(one, url, users=users)))
        program = DYING if self.broken else self.layout.program
        arguments = [*program.split(), "--config", str(place / "bridge.yaml")]
        part = self._part(f"worker {number}", "worker", arguments)
        if self.broken:
            part.with_environment(FAULTS_BREAK=self.broken)
        return part

    def _config(self, relay: LoopbackPort, admin: LoopbackPort) -> dict[str, Any]:
        own = self.postgres.port.number
        dsn = self.dsn.replace(f":{own}/", f":{self.database_port or own}/")
        backoff = {"first_seconds": 0.1, "ceiling_seconds": 1.0}
        kind: dict[str, Any] = GENERIC
        if self.layout.kind == "synapse":
            kind = {"kind": "synapse", "capture": "triggers"}
        return {
            "database": dsn,
            "homeserver": {"server_name": SERVER, "url": "http://127.0.0.1:9"} | kind,
            "listen": {"relay": relay.address, "admin": admin.address},
            "registrations": ["registration_*.yaml"],
            "delivery": {"backoff": backoff} | dict(self.layout.delivery),
        }

    def _admin(self, number: int) -> str:
        file = self.directory / f"worker_{number}" / "bridge.yaml"
        return f"http://{yaml.safe_load(file.read_text())['listen']['admin']}/ready"

    def _port(self) -> LoopbackPort:
        self._ports.append(LoopbackPort())
        return self._ports[-1]

    def _part(self, name: str, kind: str, arguments: Sequence[str]) -> Part:
        command = ChildCommand(
            name=name,
            arguments=[sys.executable, "-m", *arguments],
            log=self.directory / (name.replace(" ", "_") + ".err"),
            directory=ROOT,
        )
        return Part(name=name, kind=kind, command=command)


async def exists(file: Path) -> None:
    """Wait for a file."""
    while not await asyncio.to_thread(file.exists):
        await asyncio.sleep(0.05)


async def _answers(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(url) as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False
