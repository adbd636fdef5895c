"""A worker on a test's database: in this process, or as one of its own that can be killed."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from appservice_bridge.cli.context import owners
from appservice_bridge.cli.doors import Doors
from appservice_bridge.cli.worker import Worker
from appservice_bridge.config.loading import Loaded, load
from appservice_bridge.delivery.connections import QuietConnector
from appservice_bridge.dev.ports import LoopbackPort
from appservice_bridge.storage.database import Database
from appservice_bridge.storage.identity import current_epoch

SERVER = "example.org"


def registration(
    appservice_id: str, url: str | None, *, users: Sequence[str] = (), exclusive: bool = True
) -> dict[str, Any]:
    """A registration as a file holds it; users are regexes."""
    return {
        "id": appservice_id,
        "url": url,
        "as_token": f"as_{appservice_id}",
        "hs_token": f"hs_{appservice_id}",
        "sender_localpart": f"{appservice_id}_bot",
        "rate_limited": False,
        "receive_ephemeral": True,
        "org.matrix.msc3202": True,
        "namespaces": {"users": [{"regex": one, "exclusive": exclusive} for one in users]},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """A config file and what it says; its ports stay ours for as long as anybody has this."""

    config: Path
    relay_port: LoopbackPort
    admin_port: LoopbackPort

    @property
    def relay_url(self) -> str:
        return self.relay_port.url

    @property
    def admin_url(self) -> str:
        return self.admin_port.url

    def load(self) -> Loaded:
        return load(self.config)

    def relay(self, appservice_id: str, path: str) -> str:
        return f"{self.relay_url}/appservice/{appservice_id}{path}"


def write_files(
    directory: Path,
    database: str,
    registrations: Sequence[dict[str, Any]],
    *,
    server_name: str = SERVER,
    homeserver_url: str = "http://127.0.0.1:9",
    delivery: dict[str, Any] | None = None,
    capture: str = "none",
    homeserver: dict[str, Any] | None = None,
    budget: dict[str, int] | None = None,
    appservices: dict[str, Any] | None = None,
) -> Files:
    """Config and registrations as an operator would write them."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(registrations):
        (directory / f"registration_{number}.yaml").write_text(json.dumps(one))
    relay, admin = LoopbackPort(), LoopbackPort()
    quick = {"backoff": {"first_seconds": 0.1, "ceiling_seconds": 0.4}}
    document = {
        "database": database,
        "homeserver": {"server_name": server_name, "url": homeserver_url, "capture": capture}
        | (homeserver or {}),
        "listen": {"relay": relay.address, "admin": admin.address},
        "registrations": ["registration_*.yaml"],
        "delivery": quick | (delivery or {}),
        "budget": budget or {},
        "appservices": appservices or {},
    }
    config = directory / "bridge.yaml"
    config.write_text(yaml.safe_dump(document))
    return Files(config=config, relay_port=relay, admin_port=admin)


@asynccontextmanager
async def worker(files: Files, *, over_tls: bool = False) -> AsyncIterator[Worker]:
    """A worker in this process, until the context ends; an error of it ends the test."""
    of = files.load()
    stop = asyncio.Event()
    async with (
        Database.open(of.config.dsn(), on_connect=current_epoch) as database,
        aiohttp.ClientSession(connector=QuietConnector(limit=0)) as session,
        asyncio.TaskGroup() as group,
    ):
        one = Worker(of, owners(of), database, session)
        await one.begin()
        group.create_task(one.run(Doors(of.config), stop))
        await (one.serving.wait() if over_tls else ready(files))
        try:
            yield one
        finally:
            stop.set()


@dataclass(kw_only=True)
class WorkerProcess:
    """A worker as operators run it; `kill` is SIGKILL.

    Attributes:
        release: where another package of the bridge lies; None: this one.
    """

    files: Files
    log: Path
    release: Path | None = None
    process: asyncio.subprocess.Process | None = None

    async def start(self, *, wait: bool = True) -> None:
        with self.log.open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "appservice_bridge", "run"),
                *("--config", str(self.files.config)),
                cwd=self.release,  # where -m looks first
                stdout=output,
                stderr=output,
            )
        if wait:
            await self._until_ready()

    async def _until_ready(self) -> None:
        assert self.process is not None
        ended = asyncio.ensure_future(self.process.wait())
        says_so = asyncio.ensure_future(ready(self.files))
        try:
            await asyncio.wait({ended, says_so}, return_when=asyncio.FIRST_COMPLETED)
            assert not ended.done(), f"the worker ended:\n{self._last_words()}"
            assert says_so.exception() is None, f"it is not ready:\n{self._last_words()}"
        finally:
            ended.cancel()
            says_so.cancel()

    def _last_words(self) -> str:
        return "\n".join(self.log.read_text().splitlines()[-20:])

    async def kill(self) -> None:
        assert self.process is not None
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    async def terminate(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), 60)


@asynccontextmanager
async def worker_process(
    files: Files, *, release: Path | None = None
) -> AsyncIterator[WorkerProcess]:
    """A worker in a process of its own; killed when the context ends, if it still runs."""
    one = WorkerProcess(files=files, log=files.config.with_suffix(".log"), release=release)
    await one.start()
    try:
        yield one
    finally:
        await one.kill()


async def ready(files: Files, within: float = 60.0) -> None:
    """Wait until a worker says that it can store and deliver."""
    async with asyncio.timeout(within), aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(files.admin_url + "/ready") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)
