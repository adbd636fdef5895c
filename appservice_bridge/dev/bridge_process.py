"""The bridge as its users run it: its own commands, as children."""

import asyncio
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp

from appservice_bridge.dev.ports import LoopbackPort
from appservice_bridge.dev.process import ChildCommand, ChildDiedError, ChildProcess

OUR_VARIABLES: Final = "APPSERVICE_BRIDGE_"
ANSWER_WITHIN: Final = aiohttp.ClientTimeout(total=5)


@dataclass(slots=True)
class BridgeProcess:
    """One worker of the bridge, and the commands that prepare it.

    Attributes:
        config: file that `dev` wrote; variables of the user's shell do not change it.
    """

    config: Path
    log: Path
    relay: LoopbackPort = field(default_factory=LoopbackPort)
    admin: LoopbackPort = field(default_factory=LoopbackPort)
    _child: ChildProcess | None = field(default=None, init=False)

    @property
    def child(self) -> ChildProcess:
        """The running worker.

        Raises:
            RuntimeError: before `launch`.
        """
        if self._child is None:
            raise RuntimeError("this bridge was not started")
        return self._child

    async def prepare(self, command: str) -> None:
        """Run `migrate` or `install` to its end.

        Raises:
            ChildDiedError: it failed; the bridge's log says why.
        """
        child = ChildProcess.start(self._command(command))
        try:
            code = await child.ended()
        finally:
            child.stop()
        if code != 0:
            raise ChildDiedError(f"appservice-bridge {command}", code, self.log)

    def launch(self) -> None:
        """Start `run`; main thread, see `ChildProcess`."""
        self._child = ChildProcess.start(self._command("run"))

    async def ready(self) -> bool:
        """Whether it can store and deliver, and the homeserver can reach it.

        Raises:
            ChildDiedError: it has ended.
        """
        self.child.require_running()
        return await self._relay_listens() and await self._says_ready()

    def stop(self) -> None:
        """End the worker."""
        if self._child is not None:
            self._child.stop()

    async def _relay_listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.relay.number)
        except OSError:
            return False
        writer.close()
        return True

    async def _says_ready(self) -> bool:
        try:
            async with (
                aiohttp.ClientSession(timeout=ANSWER_WITHIN) as session,
                session.get(f"{self.admin.url}/_appservice_bridge/v1/ready") as response,
            ):
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    def _command(self, command: str) -> ChildCommand:
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(OUR_VARIABLES)
        }
        arguments = (sys.executable, "-m", "appservice_bridge", command, "--config")
        return ChildCommand(
            name="bridge",
            arguments=[*arguments, str(self.config)],
            log=self.log,
            environment=environment,
        )
