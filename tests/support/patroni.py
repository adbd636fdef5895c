"""A Patroni cluster: three Postgres servers that agree by etcd on who is the primary.

Debian's packages patroni, etcd-server and postgresql are enough, and any other Patroni on PATH.
"""

import asyncio
import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil  # type: ignore[import-untyped]

from appservice_bridge.dev.ports import LoopbackPort
from appservice_bridge.dev.postgres_cluster import SUPERUSER, environment
from appservice_bridge.dev.postgres_cluster import Cluster as DataDirectory
from appservice_bridge.dev.process import ChildCommand, ChildProcess
from appservice_bridge.dev.unprivileged import Identity, ordinary_user

PROGRAMS: Final = ("patroni", "patronictl", "etcd")
SCOPE: Final = "bridge"
NODES: Final = ("node0", "node1", "node2")
# The least that Patroni takes: who is dead is noticed after `ttl`.
PATIENCE: Final = {
    "ttl": 20,
    "loop_wait": 1,
    "retry_timeout": 3,
    "maximum_lag_on_failover": 256 * 1024 * 1024,
}
PARAMETERS: Final = {
    "unix_socket_directories": "",
    "max_connections": 100,
    "shared_buffers": "32MB",
    "log_min_error_statement": "panic",
    "wal_log_hints": "on",  # for pg_rewind
}
SOUND: Final = ("running", "streaming")


def system_binaries() -> Path | None:
    """Where the newest Postgres of Debian has its programs."""
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


def missing() -> list[str]:
    """What is not installed here of all that a cluster takes."""
    postgres = [] if system_binaries() else ["postgresql"]
    return [one for one in PROGRAMS if shutil.which(one) is None] + postgres


@dataclass(slots=True)
class Node:
    """One Patroni and the Postgres that it looks after.

    Attributes:
        directory: the data directory `postgres` and the settings stand in it.
    """

    name: str
    directory: Path
    identity: Identity
    server: LoopbackPort = field(default_factory=LoopbackPort)
    rest: LoopbackPort = field(default_factory=LoopbackPort)
    patroni: ChildProcess | None = None
    _frozen: list[psutil.Process] = field(default_factory=list)

    @property
    def settings(self) -> Path:
        return self.directory / "patroni.yml"

    @property
    def data_directory(self) -> DataDirectory:
        return DataDirectory(
            data_dir=self.directory / "postgres",
            binaries=system_binaries(),
            identity=self.identity,
            log=self.directory / "patroni.log",
        )

    @property
    def runs(self) -> bool:
        return self.patroni is not None and self.patroni.running

    def start(self) -> None:
        """Start Patroni, which starts Postgres; told to end when we die, it ends that, too."""
        command = ChildCommand(
            name=self.name,
            arguments=[str(shutil.which("patroni")), str(self.settings)],
            log=self.data_directory.log,
            environment=environment(),
            directory=self.directory,
            death_signal=signal.SIGTERM,
            become=self.identity.become,
        )
        self.patroni = ChildProcess.start(command)

    def kill_patroni(self) -> None:
        """With -9: Postgres goes on alone, until Patroni is there again."""
        if self.patroni is not None and self.patroni.running:
            os.kill(self.patroni.pid, signal.SIGKILL)
            self.patroni.wait()

    def hold_replication(self) -> None:
        """Freeze what sends to the standbys, until Postgres is killed."""
        postmaster = psutil.Process(self._postmaster)
        for one in postmaster.children():
            if "walsender" in " ".join(one.cmdline()):
                one.suspend()
                self._frozen.append(one)

    def kill_postgres(self) -> None:
        """The postmaster, with -9, and what is frozen; its sessions end by themselves."""
        for one in (psutil.Process(self._postmaster), *self._frozen):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        self._frozen.clear()

    @property
    def _postmaster(self) -> int:
        pid_file = self.data_directory.data_dir / "postmaster.pid"
        return int(pid_file.read_text("ascii").split("\n")[0])

    def stop(self) -> None:
        self.kill_patroni()
        self.data_directory.free_from_remains()
        self.server.release()
        self.rest.release()


@dataclass(slots=True)
class Patroni:
    """Three nodes.

    Attributes:
        directory: has to exist; whoever runs Postgres must be able to walk through it.
        synchronous: whether a commit waits for a standby, as far as there is one.
    """

    directory: Path
    synchronous: bool = True
    nodes: dict[str, Node] = field(default_factory=dict)
    _etcd: ChildProcess | None = None
    _etcd_ports: tuple[LoopbackPort, LoopbackPort] = field(
        default_factory=lambda: (LoopbackPort(), LoopbackPort())
    )
    _password: str = field(default_factory=lambda: secrets.token_urlsafe(32))

    def dsn(self, database: str = "postgres") -> str:
        """All hosts; whichever is primary is meant."""
        hosts = ",".join(node.server.address for node in self.nodes.values())
        options = "sslmode=disable&target_session_attrs=primary"
        return f"postgresql://{SUPERUSER}:{self._password}@{hosts}/{database}?{options}"

    @contextmanager
    def running(self) -> Iterator["Patroni"]:
        """Etcd and the nodes; all of them have ended afterwards."""
        identity = ordinary_user(owner_of=self.directory / "nobody")
        try:
            self._start_etcd()
            for name in NODES:
                directory = self.directory / name
                directory.mkdir(mode=0o700)
                identity.own(directory)
                node = self.nodes[name] = Node(name, directory, identity)
                node.settings.write_text(json.dumps(self._settings(node)))
                identity.own(node.settings)
                node.start()
            yield self
        finally:
            for node in self.nodes.values():
                node.stop()
            self._stop_etcd()

    async def whole(self, within: float = 300) -> dict[str, str]:
        """Wait until each node does its part; who has which: leader, sync_standby, replica.

        Raises:
            TimeoutError: it does not become so; the message says how it is.
        """
        deadline = time.monotonic() + within
        async with aiohttp.ClientSession() as http:
            while True:
                members = await self._members(http)
                roles = {member["name"]: member["role"] for member in members}
                if self._all_well(members, list(roles.values())):
                    return roles
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the cluster is not whole: {members}")
                await asyncio.sleep(0.2)

    async def another(self, before: str, within: float = 120) -> str:
        """Wait until another node than this one is primary; its name.

        Raises:
            TimeoutError: none is.
        """
        async with asyncio.timeout(within), aiohttp.ClientSession() as http:
            while True:
                for member in await self._members(http):
                    if member["role"] == "leader" and member["name"] != before:
                        return str(member["name"])
                await asyncio.sleep(0.2)

    async def order(self, *arguments: str, within: float = 120) -> None:
        """Run `patronictl` without a question.

        Raises:
            RuntimeError: it was refused; the message says why.
        """
        settings = str(self.nodes[NODES[0]].settings)
        command = [str(shutil.which("patronictl")), "-c", settings, *arguments, "--force"]
        child = await asyncio.create_subprocess_exec(
            *command, env=environment(), stdout=-1, stderr=-2, stdin=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(within):
            said, _ = await child.communicate()
        if child.returncode:
            raise RuntimeError(f"patronictl {arguments[0]}: {said.decode()[-500:]}")

    def _all_well(self, members: list[dict[str, Any]], roles: list[str]) -> bool:
        return (
            len(members) == len(NODES)
            and all(member["state"] in SOUND for member in members)
            and len({member.get("timeline") for member in members}) == 1
            and roles.count("leader") == 1
            and roles.count("sync_standby") == int(self.synchronous)
        )

    async def _members(self, http: aiohttp.ClientSession) -> list[dict[str, Any]]:
        for node in self.nodes.values():
            with suppress(aiohttp.ClientError, TimeoutError):
                timeout = aiohttp.ClientTimeout(total=5)
                async with http.get(f"{node.rest.url}/cluster", timeout=timeout) as answer:
                    return list((await answer.json())["members"])
        return []

    def _start_etcd(self) -> None:
        client, peer = self._etcd_ports
        data = self.directory / "etcd"
        options = {
            "name": "etcd",
            "data-dir": str(data),
            "listen-client-urls": client.url,
            "advertise-client-urls": client.url,
            "listen-peer-urls": peer.url,
            "initial-advertise-peer-urls": peer.url,
            "initial-cluster": f"etcd={peer.url}",
        }
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        command = ChildCommand(
            name="etcd",
            arguments=[str(shutil.which("etcd")), *words],
            log=self.directory / "etcd.log",
        )
        self._etcd = ChildProcess.start(command)

    def _stop_etcd(self) -> None:
        if self._etcd is not None:
            self._etcd.stop()
        for port in self._etcd_ports:
            port.release()

    def _settings(self, node: Node) -> Mapping[str, Any]:
        """What Patroni reads; JSON is YAML."""
        return {
            "scope": SCOPE,
            "name": node.name,
            "restapi": {"listen": node.rest.address, "connect_address": node.rest.address},
            "etcd3": {"hosts": [self._etcd_ports[0].address]},
            "bootstrap": {
                "dcs": PATIENCE
                | {
                    "synchronous_mode": self.synchronous,
                    "postgresql": {"use_pg_rewind": True, "parameters": PARAMETERS},
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}],
            },
            "postgresql": self._postgres(node),
        }

    def _postgres(self, node: Node) -> Mapping[str, Any]:
        users = {"superuser": SUPERUSER, "replication": "replicator", "rewind": "rewinder"}
        return {
            "listen": node.server.address,
            "connect_address": node.server.address,
            "bin_dir": str(system_binaries()),
            "data_dir": str(node.data_directory.data_dir),
            "pgpass": str(node.directory / "pgpass"),
            # What pg_rewind would need may be gone; then the node is copied anew.
            "remove_data_directory_on_rewind_failure": True,
            "remove_data_directory_on_diverged_timelines": True,
            "authentication": {
                one: {"username": user, "password": self._password} for one, user in users.items()
            },
            "pg_hba": [
                "host all all 127.0.0.1/32 scram-sha-256",
                "host replication replicator 127.0.0.1/32 scram-sha-256",
            ],
        }
