"""`appservice-bridge dev` as its users run it: a command of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped]

COMMAND: Final = (sys.executable, "-m", "appservice_bridge", "dev")
PATIENCE_SECONDS: Final = 60.0


@dataclass(slots=True)
class DevCommand:
    """One run, and what it has printed so far."""

    directory: Path
    process: "subprocess.Popen[bytes]"
    output: Path

    @classmethod
    def start(
        cls, directory: Path, *options: str, user: str | None = None, output: Path | None = None
    ) -> "DevCommand":
        output = output or directory.with_name(f"{directory.name}.out.{time.monotonic_ns()}")
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*COMMAND, "--dir", str(directory), *options],
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                user=user,
                extra_groups=None if user is None else [],
                env=os.environ | {"COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
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
        return self.process.wait(30)


def survivors(processes: "Sequence[psutil.Process]") -> "list[psutil.Process]":
    """Those that still run after a few seconds."""
    alive: list[psutil.Process] = psutil.wait_procs(processes, timeout=8)[1]
    return alive
