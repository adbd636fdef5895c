"""A Synapse of several processes: main, a client worker, and one that writes what is for devices.

The writer writes to-device messages and device lists, the client worker serves all else that
clients and other servers ask for. It also notifies appservices: whatever its pusher sends has come
to it through Redis.
"""

import dataclasses
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml

from appservice_bridge.dev.parts import Part, launched
from appservice_bridge.dev.ports import LoopbackPort
from appservice_bridge.dev.private_file import write_private
from appservice_bridge.dev.process import ChildCommand, ChildProcess
from appservice_bridge.dev.synapse import ANSWER_WITHIN, Synapse
from tests.support.redis import Redis

PROJECT: Final = Path(__file__).resolve().parents[2]
CLIENT: Final = "client1"
WRITER: Final = "writer1"
REPLICATION_SECRET: Final = "a-secret-of-workers"  # it goes into a header


async def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        async with (
            aiohttp.ClientSession(timeout=ANSWER_WITHIN) as session,
            session.get(url) as response,
        ):
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


@dataclass(slots=True)
class Process:
    """One of the processes beside the main one: a worker, or the router."""

    name: str
    arguments: list[str]
    directory: Path
    working_directory: Path
    environment: Mapping[str, str] | None = None
    port: LoopbackPort = field(default_factory=LoopbackPort)
    replication: LoopbackPort = field(default_factory=LoopbackPort)
    _child: ChildProcess | None = field(default=None, init=False)

    @property
    def child(self) -> ChildProcess:
        """The running process.

        Raises:
            RuntimeError: before `launch`.
        """
        if self._child is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._child

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.directory / f"{self.name}.log"

    def launch(self) -> None:
        """Start it; main thread, see `ChildProcess`."""
        self._child = ChildProcess.start(
            ChildCommand(
                name=self.name,
                arguments=self.arguments,
                log=self.log,
                environment=self.environment,
                directory=self.working_directory,
            )
        )

    async def ready(self) -> bool:
        """Whether it answers.

        Raises:
            ChildDiedError: it has ended.
        """
        self.child.require_running()
        return await answers(f"{self.port.url}/health")

    def stop(self) -> None:
        """End it."""
        if self._child is not None:
            self._child.stop()


@dataclass
class SynapseWithWorkers(Synapse):
    """A homeserver that is reached through a router, as behind a web server.

    `launch` starts Redis and the main process; the others follow from `ready`, once the main
    process has made the tables. With `remote.address` as its name another server is spoken to.
    """

    replication: LoopbackPort = field(default_factory=LoopbackPort)
    remote: LoopbackPort = field(default_factory=LoopbackPort)
    redis: Redis = field(init=False)
    workers: dict[str, Process] = field(init=False)
    router: Process = field(init=False)
    _followed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        directory = self.settings.directory
        # The module of this checkout, whatever the environment of that Synapse has installed.
        environment = os.environ | {"PYTHONPATH": str(PROJECT)}
        self.settings = dataclasses.replace(self.settings, environment=environment)
        self.redis = Redis(directory / "redis")
        self.workers = {name: self._worker(name) for name in (CLIENT, WRITER)}
        self.router = Process("router", [], directory, PROJECT)
        urls = [self.port.url, *(self.workers[name].port.url for name in (CLIENT, WRITER))]
        program = [sys.executable, "-m", "tests.support.worker_router"]
        self.router.arguments = [*program, str(self.router.port.number), *urls]
        extra = self.settings.extra | self._shared()
        self.settings = dataclasses.replace(self.settings, extra=extra)

    @property
    def url(self) -> str:
        """Base URL of its client API."""
        return self.router.port.url

    def launch(self) -> None:
        """Start the first of its processes; main thread, see `ChildProcess`."""
        self._followed = False
        self.redis.launch()
        Synapse.launch(self)

    async def ready(self) -> bool:
        """Whether all of it answers.

        Raises:
            ChildDiedError: one of them has ended.
        """
        self.child.require_running()
        if not (await self.redis.ready() and await answers(f"{self.port.url}/health")):
            return False
        if not self._followed:
            self._follow()
        return all([await part.ready() for part in self._followers()])

    def stop(self) -> None:
        """End all of it."""
        for part in reversed(self._followers()):
            part.stop()
        Synapse.stop(self)
        self.redis.stop()

    def kill(self, worker: str) -> None:
        """SIGKILL one of the workers."""
        child = self.workers[worker].child
        os.kill(child.pid, signal.SIGKILL)
        child.wait()

    async def start(self, worker: str) -> None:
        """Start a worker that was killed, and wait until it answers."""
        await launched(self.workers[worker])

    def _followers(self) -> list[Part]:
        return [*self.workers.values(), self.router]

    def _follow(self) -> None:
        for name, worker in self.workers.items():
            config = self.settings.directory / f"{name}.yaml"
            write_private(config, yaml.safe_dump(self._own(worker)))
        for part in self._followers():
            part.launch()
        self._followed = True

    def _worker(self, name: str) -> Process:
        directory = self.settings.directory
        configs = [directory / "homeserver.yaml", directory / f"{name}.yaml"]
        program = [self.settings.python, "-m", "synapse.app.generic_worker"]
        arguments = [*program, *(word for path in configs for word in ("-c", str(path)))]
        return Process(name, arguments, directory, directory, self.settings.environment)

    def _shared(self) -> dict[str, Any]:
        """What all its processes are told."""
        ports = {"main": self.replication} | {n: w.replication for n, w in self.workers.items()}
        return {
            "redis": {"enabled": True, "host": "127.0.0.1", "port": self.redis.port.number},
            "instance_map": {
                name: {"host": "127.0.0.1", "port": port.number} for name, port in ports.items()
            },
            "stream_writers": {"to_device": [WRITER], "device_lists": [WRITER]},
            "notify_appservices_from_worker": CLIENT,
            "federation_domain_whitelist": [self.remote.address],
            "federation_verify_certificates": False,
            "federation_ip_range_blacklist": [],
            "worker_replication_secret": REPLICATION_SECRET,
            "listeners": [self._listener(), _replication(self.replication)],
        }

    def _own(self, worker: Process) -> dict[str, Any]:
        """What one worker is told beside."""
        return {
            "worker_app": "synapse.app.generic_worker",
            "worker_name": worker.name,
            "worker_listeners": [
                {**self._listener(), "port": worker.port.number},
                _replication(worker.replication),
            ],
            "worker_log_config": str(self.settings.directory / "log.yaml"),
        }


def _replication(port: LoopbackPort) -> dict[str, Any]:
    return {
        "port": port.number,
        "type": "http",
        "bind_addresses": ["127.0.0.1"],
        "resources": [{"names": ["replication"]}],
    }
