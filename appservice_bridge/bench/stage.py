"""Where everything is measured: a Postgres of its own, receivers, workers and yardsticks."""

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import psutil  # type: ignore[import-untyped]
import yaml

from appservice_bridge.bench.filling import NAIVE_TABLE, appservice
from appservice_bridge.bench.receivers import Receivers
from appservice_bridge.bench.yardsticks import Plan
from appservice_bridge.dev.bridge_process import BridgeProcess
from appservice_bridge.dev.parts import launched
from appservice_bridge.dev.postgres import EmbeddedPostgres
from appservice_bridge.dev.private_file import write_private
from appservice_bridge.dev.process import ChildCommand, ChildProcess
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.storage.database import Connection, connect
from appservice_bridge.storage.migrations import migrate

SETTINGS: Final = {"max_wal_size": "4GB", "shared_buffers": "512MB"}
"""Of Postgres, beside its defaults; fsync and synchronous_commit are on."""

TEMPLATE: Final = "bench_template"
STALLED_SECONDS: Final = 120.0
LOOK_SECONDS: Final = 0.05
MIB: Final = 2**20


class StalledError(BridgeError):
    """What is measured does not go on; its log, which is gone by then, is quoted."""

    def __init__(self, got: int, wanted: int, log: str) -> None:
        super().__init__(
            f"{got} of {wanted} came, and none for {STALLED_SECONDS:.0f} s; its log ends:\n{log}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A worker or a yardstick while it runs."""

    child: ChildProcess
    relay_url: str = ""

    def peak_memory_mb(self) -> float:
        """The most memory (RSS) that it has had, in MiB; what it has now where that is not kept."""
        status = Path(f"/proc/{self.child.pid}/status")
        if status.exists():
            for line in status.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
        return float(psutil.Process(self.child.pid).memory_info().rss) / MIB

    def busy_seconds(self) -> float:
        """How long it has used a core."""
        times = psutil.Process(self.child.pid).cpu_times()
        return float(times.user + times.system)

    def last_words(self) -> str:
        """The end of its log."""
        return self.child.command.log.read_text(errors="replace")[-2000:]


@dataclass(slots=True, kw_only=True)
class Stage:
    """Everything that the scenarios share.

    Attributes:
        quick: sizes are those of --quick.
    """

    server: EmbeddedPostgres
    receivers: Receivers
    directory: Path
    quick: bool
    _made: int = field(default=0, init=False)

    @classmethod
    @asynccontextmanager
    async def open(cls, *, quick: bool) -> AsyncIterator[Self]:
        """Start Postgres and the receivers in a new directory; all is gone afterwards."""
        directory = Path(tempfile.mkdtemp(prefix="appservice-bridge-bench-"))
        server = EmbeddedPostgres(directory / "postgres", settings=SETTINGS)
        receivers = Receivers(directory / "receivers.log")
        try:
            await launched(server)
            await _make_template(server)
            async with receivers.running():
                yield cls(server=server, receivers=receivers, directory=directory, quick=quick)
        finally:
            server.stop()
            shutil.rmtree(directory, ignore_errors=True)

    def size(self, full: int, *, quick: int) -> int:
        """How much is to be done."""
        return quick if self.quick else full

    @asynccontextmanager
    async def database(self, template: str = TEMPLATE) -> AsyncIterator[str]:
        """The DSN of a new database; with the bridge's tables and the naive one, or another's."""
        self._made += 1
        name = f"bench_{self._made}"
        admin = await connect(self.server.dsn())
        try:
            await admin.execute("set statement_timeout = 0")
            await admin.execute(f"create database {name} template {template}")
            try:
                yield self.server.dsn(name)
            finally:
                await admin.execute(f"drop database {name} with (force)")
        finally:
            await admin.close()

    @asynccontextmanager
    async def worker(
        self,
        dsn: str,
        appservices: int,
        *,
        delivery: Mapping[str, Any] | None = None,
        ready: bool = True,
    ) -> AsyncIterator[Running]:
        """A worker with so many appservices, as `run` starts it; `ready` waits until it is."""
        directory = Path(tempfile.mkdtemp(prefix="bridge-", dir=self.directory))
        bridge = BridgeProcess(directory / "bridge.yaml", directory / "bridge.log")
        self._write_config(bridge, dsn, appservices, delivery or {})
        try:
            if ready:
                await launched(bridge)
            else:
                bridge.launch()
            yield Running(child=bridge.child, relay_url=bridge.relay.url)
        finally:
            bridge.stop()
            bridge.relay.release()
            bridge.admin.release()

    def _write_config(
        self, bridge: BridgeProcess, dsn: str, appservices: int, delivery: Mapping[str, Any]
    ) -> None:
        directory = bridge.config.parent
        for name in map(appservice, range(appservices)):
            document = registration(name, self.receivers.url(name))
            (directory / f"{name}.yaml").write_text(json.dumps(document))
        document = {
            "database": dsn,
            "homeserver": {
                "server_name": "example.org",
                "url": self.receivers.port.url,  # lets itself be woken, and is no more
                "capture": "none",  # we write what the triggers would
            },
            "listen": {"relay": bridge.relay.address, "admin": bridge.admin.address},
            "registrations": ["as*.yaml"],
            "delivery": dict(delivery),
            "budget": {"total_bytes": 2**40, "appservice_bytes": 2**40},
        }
        write_private(bridge.config, yaml.safe_dump(document))

    @asynccontextmanager
    async def yardstick(self, kind: str, dsn: str, appservices: int) -> AsyncIterator[Running]:
        """`naive` or `ceiling` with so many appservices."""
        directory = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=self.directory))
        urls = {name: self.receivers.url(name) for name in map(appservice, range(appservices))}
        write_private(directory / "plan.json", json.dumps(asdict(Plan(dsn=dsn, urls=urls))))
        command = ChildCommand(
            name=kind,
            arguments=[
                *(sys.executable, "-m", "appservice_bridge.bench.yardsticks"),
                *(kind, str(directory / "plan.json")),
            ],
            log=directory / f"{kind}.log",
        )
        child = ChildProcess.start(command)
        try:
            yield Running(child=child)
        finally:
            child.stop()

    async def until(self, messages: int, running: Running) -> None:
        """Wait until so many messages came.

        Raises:
            ChildDiedError: who was to deliver them has ended.
            StalledError: nothing comes any more.
        """
        loop = asyncio.get_running_loop()
        got, moved = -1, loop.time()
        while True:
            running.child.require_running()
            seen = await self.receivers.seen()
            if seen.messages >= messages:
                return
            if seen.messages > got:
                got, moved = seen.messages, loop.time()
            elif loop.time() > moved + STALLED_SECONDS:
                raise StalledError(got, messages, running.last_words())
            await asyncio.sleep(LOOK_SECONDS)


async def _make_template(server: EmbeddedPostgres) -> None:
    admin = await connect(server.dsn())
    await admin.execute(f"create database {TEMPLATE}")
    await admin.close()
    async with connected(server.dsn(TEMPLATE)) as conn:
        await migrate(conn)
        await conn.execute(NAIVE_TABLE)


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[Connection]:
    """A connection that may take its time."""
    conn = await connect(dsn)
    try:
        await conn.execute("set statement_timeout = 0")
        yield conn
    finally:
        await conn.close()


def registration(appservice_id: str, url: str) -> dict[str, Any]:
    """A registration that asks for encryption, of an appservice that owns `@{id}_.*`."""
    return {
        "id": appservice_id,
        "url": url,
        "as_token": f"as_{appservice_id}",
        "hs_token": f"hs_{appservice_id}",
        "sender_localpart": f"{appservice_id}_bot",
        "rate_limited": False,
        "receive_ephemeral": True,
        "org.matrix.msc3202": True,
        "namespaces": {"users": [{"regex": f"@{appservice_id}_.*", "exclusive": True}]},
    }
