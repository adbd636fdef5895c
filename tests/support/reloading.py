"""An operator who changes files and has them read again, and a homeserver that never pauses."""

import asyncio
import http.client
import json
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import yaml
from yarl import URL

from tests.support.bridge import Files, WorkerProcess

ROOT: Final = "/_appservice_bridge/v1"
RELOAD: Final = ROOT + "/reload"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Speaks to the admin port with a token."""

    session: aiohttp.ClientSession
    files: Files
    token: str | None

    async def ask(
        self, method: str, path: str, *, body: Any = None, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        shown = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        url = URL(self.files.admin_url + path, encoded=True)
        async with self.session.request(method, url, headers=shown | headers, json=body) as answer:
            return answer.status, await answer.json()

    async def get(self, path: str) -> dict[str, Any]:
        """What is answered below the admin port's root, where it is 200."""
        status, told = await self.ask("GET", ROOT + path)
        assert (status, told["version"]) == (200, 1), told
        return told

    async def reload(self) -> str:
        """Have the files read again; what it came to."""
        return str((await self.ask("POST", RELOAD))[1]["outcome"])

    async def until_reload(self, outcome: str, within: float = 60.0) -> None:
        """Wait until the last reload, whoever asked for it, came to this."""
        async with asyncio.timeout(within):
            while (await self.ask("GET", RELOAD))[1]["outcome"] != outcome:
                await asyncio.sleep(0.1)


def change(files: Files, **keys: Any) -> None:
    """Change top-level keys of the config file, as an editor does: by a rename."""
    _replace(files.config, yaml.safe_dump(yaml.safe_load(files.config.read_text()) | keys))


def register(files: Files, registration: dict[str, Any], number: int = 0) -> None:
    """Write a registration file anew."""
    _replace(files.config.parent / f"registration_{number}.yaml", json.dumps(registration))


def _replace(path: Path, text: str) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.replace(path)


def with_tokens(files: Files) -> Files:
    """The same with three tokens for the admin port, each named as its role."""
    tokens = []
    for role in ("viewer", "operator", "admin"):
        (files.config.parent / f"{role}.token").write_text(f"secret-{role}\n")
        tokens.append({"name": role, "role": role, "token_file": f"{role}.token"})
    change(files, admin={"tokens": tokens})
    return files


@asynccontextmanager
async def operator(files: Files, role: str | None = "operator") -> AsyncIterator[Operator]:
    """An operator of this role; None: without a token."""
    token = None if role is None else f"secret-{role}"
    async with aiohttp.ClientSession() as session:
        yield Operator(session=session, files=files, token=token)


def hang_up(worker: WorkerProcess) -> None:
    assert worker.process is not None
    worker.process.send_signal(signal.SIGHUP)


@dataclass(kw_only=True)
class Sender:
    """Sends one transaction after the other on one connection, and repeats nothing by itself."""

    files: Files
    token: str = "hs_bot"
    sent: int = 0
    failed: list[str] = field(default_factory=list)
    _done: threading.Event = field(default_factory=threading.Event)

    def _send(self) -> None:
        address = urlsplit(self.files.relay_url).netloc
        connection = http.client.HTTPConnection(address, timeout=60)
        while not self._done.is_set():
            self.sent += 1
            body = json.dumps({"events": [{"event_id": f"${self.sent}", "type": "m"}]})
            path = f"/appservice/bot/_matrix/app/v1/transactions/{self.sent}"
            headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
            try:
                connection.request("PUT", path, body, headers)
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    self.failed.append(str(answer.status))
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(repr(error))
                connection.close()

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Send for as long as the context lasts."""
        work = asyncio.create_task(asyncio.to_thread(self._send))
        try:
            yield
        finally:
            self._done.set()
            await work


def in_order(*requests: Any) -> list[Any]:
    """Requests of several receivers as they began, a transaction id counting once."""
    first: dict[str, Any] = {}
    for request in sorted(requests, key=lambda one: one.began):
        first.setdefault(request.txn_id, request)
    return list(first.values())
