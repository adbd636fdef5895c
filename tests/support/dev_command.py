"""`appservice-bridge dev` as its users run it: a command of its own."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped]

COMMAND: Final = ("-m", "appservice_bridge", "dev")
PATIENCE_SECONDS: Final = 120.0
ENVIRONMENT: Final = os.environ | {"COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
# For an interpreter outside the virtual environment, which may lie where only root can go.
PACKAGES: Final = os.pathsep.join(
    [str(Path(__file__).parents[2]), *(path for path in sys.path if path.endswith("-packages"))]
)


@dataclass(slots=True)
class DevCommand:
    """One run, and what it has printed so far."""

    directory: Path
    process: "subprocess.Popen[bytes]"
    output: Path

    @classmethod
    def start(
        cls,
        directory: Path,
        *options: str,
        python: str = sys.executable,
        user: str | None = None,
        output: Path | None = None,
    ) -> "DevCommand":
        output = output or directory.with_name(f"{directory.name}.out.{time.monotonic_ns()}")
        with output.open("wb") as file:
            process = subprocess.Popen(
                [python, *COMMAND, "--dir", str(directory), *options],
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                user=user,
                extra_groups=None if user is None else [],
                env=ENVIRONMENT if user is None else ENVIRONMENT | {"PYTHONPATH": PACKAGES},
            )
        return cls(directory, process, output)

    def said(self) -> str:
        return self.output.read_text("utf-8")

    def env(self) -> dict[str, Any]:
        contents: dict[str, Any] = json.loads((self.directory / "env.json").read_text("utf-8"))
        return contents

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def wait_until_said(self, text: str) -> None:
        self.wait_until(lambda: text in self.said())

    def family(self) -> "list[psutil.Process]":
        me = psutil.Process(self.process.pid)
        return [me, *me.children(recursive=True)]

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(120)


def survivors(processes: "Sequence[psutil.Process]") -> "list[psutil.Process]":
    """Those that still run after a minute."""
    alive: list[psutil.Process] = psutil.wait_procs(processes, timeout=60)[1]
    return alive


def running_in(directory: Path) -> "list[psutil.Process]":
    """Processes that work in a directory or were started with a path in it."""
    return [
        process
        for process in psutil.process_iter(["cwd", "cmdline"])
        if any(
            str(directory) in (word or "")
            for word in (process.info["cwd"], *(process.info["cmdline"] or ()))
        )
    ]


def python_for(user: str) -> str | None:
    """An interpreter that this user can run, with our packages; None if there is none."""
    version = f"python3.{sys.version_info.minor}"
    for python in (sys.executable, shutil.which(version, path="/usr/bin:/usr/local/bin")):
        probe = [python or "", "-c", "import appservice_bridge, nio, synapse"]
        environment = {"PYTHONPATH": PACKAGES}
        try:
            subprocess.run(probe, user=user, extra_groups=[], env=environment, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    return None
