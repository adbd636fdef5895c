"""A guide's shell blocks, and the machine of a newcomer who runs them one after the other.

Real are Synapse, Postgres, psql, the bridge and its commands. Stood in for are `useradd`, `chown`
and `systemctl`: the last one restarts the real Synapse, and runs the real unit's ExecStart.
"""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.support.service_manager import manager

REPOSITORY: Final = Path(__file__).parents[2]
BLOCK: Final = re.compile(r'^```sh title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
PROGRAM: Final = "/opt/appservice-bridge/bin/appservice-bridge"
CONFIGURATION: Final = "/etc/appservice-bridge"
STAND_IN: Final = """#!/bin/bash
exec 3<>/dev/tcp/127.0.0.1/{port}
echo "$*" >&3
read -r answer <&3
[ "$answer" = done ] || {{ echo "systemctl $*: $answer" >&2; exit 1; }}
"""


def blocks(guide: Path) -> dict[str, str]:
    """The blocks with a title, which are meant to be run, in their order."""
    found = BLOCK.findall(guide.read_text("utf-8"))
    assert len({title for title, _ in found}) == len(found), "two blocks have one title"
    return dict(found)


@dataclass(kw_only=True)
class Machine:
    """Where the blocks are run: one shell's variables and functions, and services.

    Attributes:
        yours: what stands in for the one block that every reader changes.
        restart_synapse: what `systemctl restart matrix-synapse` does here.
    """

    directory: Path
    yours: str
    restart_synapse: Callable[[], Awaitable[None]]
    bridge: asyncio.subprocess.Process | None = None
    _starts: int = field(default=0, init=False)

    @property
    def conf(self) -> Path:
        return self.directory / "conf"

    @property
    def units(self) -> Path:
        return self.directory / "units"

    @property
    def log(self) -> Path:
        return self.directory / "bridge.log"

    async def run(self, titled: Mapping[str, str]) -> str:
        """Run blocks in one shell, as someone does who pastes them; what they printed."""
        script = "\n".join(["set -eu", self.yours, *titled.values()])
        path = f"{self.directory / 'bin'}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/bin"
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", script),
            cwd=REPOSITORY,
            env={"PATH": path, "PYTHONPATH": str(REPOSITORY), "LC_ALL": "C.UTF-8"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said = (await process.communicate())[0].decode()
        assert process.returncode == 0, f"{', '.join(titled)} ended {process.returncode}:\n{said}"
        return said

    async def systemctl(self, *words: str) -> None:
        """What the guide asks of systemd."""
        match words:
            case ("daemon-reload",):
                pass
            case ("restart", "matrix-synapse"):
                await self.restart_synapse()
            case ("enable", "--now", "appservice-bridge"):
                await self._start()
            case ("disable", "--now", "appservice-bridge"):
                await self._stop()
            case _:
                raise AssertionError(f"nothing here stands in for systemctl {' '.join(words)}")

    async def _start(self) -> None:
        unit = (self.units / "appservice-bridge.service").read_text()
        [command] = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
        program, *arguments = command.replace(CONFIGURATION, str(self.conf)).split()
        assert program == PROGRAM
        self._starts += 1
        address = str(self.directory / f"notify-{self._starts}")
        async with manager(address) as systemd:
            with self.log.open("ab") as output:
                self.bridge = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "appservice_bridge", *arguments),
                    cwd=self.conf,
                    env={"PYTHONPATH": str(REPOSITORY), "NOTIFY_SOCKET": address},
                    stdout=output,
                    stderr=output,
                )
            await systemd.hears(READY="1")

    async def _stop(self) -> None:
        assert self.bridge is not None
        self.bridge.terminate()
        assert await asyncio.wait_for(self.bridge.wait(), 60) == 0, self.log.read_text()[-4000:]


@asynccontextmanager
async def machine(
    directory: Path, *, yours: str, restart_synapse: Callable[[], Awaitable[None]]
) -> AsyncIterator[Machine]:
    """Make the machine; what the guide started on it is killed when the context ends."""
    one = Machine(directory=directory, yours=yours, restart_synapse=restart_synapse)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await one.systemctl(*(await reader.readline()).decode().split())
            writer.write(b"done\n")
        except Exception as error:
            writer.write(f"{error!r}\n".encode())
            raise
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    _make_programs(directory / "bin", port=server.sockets[0].getsockname()[1])
    one.units.mkdir()
    try:
        yield one
    finally:
        if one.bridge is not None and one.bridge.returncode is None:
            one.bridge.kill()
            await one.bridge.wait()
        server.close()


def _make_programs(directory: Path, *, port: int) -> None:
    directory.mkdir()
    programs = {
        "appservice-bridge": f'#!/bin/sh\nexec {sys.executable} -m appservice_bridge "$@"\n',
        "python3": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
        "systemctl": STAND_IN.format(port=port),
        "useradd": "#!/bin/sh\n",
        "chown": "#!/bin/sh\n",
    }
    for name, text in programs.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
