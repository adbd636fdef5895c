"""A child process that ends with its parent, writes to a log file, and is stopped in steps."""

import asyncio
import ctypes
import os
import platform
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from appservice_bridge.domain.errors import BridgeError

PR_SET_PDEATHSIG: Final = 1
DIES_WITH_PARENT: Final = platform.system() == "Linux"
# Loaded before any fork: a forked child must not import or allocate more than it has to.
LIBC: Final = ctypes.CDLL(None, use_errno=True)


class ChildDiedError(BridgeError):
    """A child process ended although it was wanted; its log says why."""

    def __init__(self, name: str, code: int | None, log: Path) -> None:
        super().__init__(f"{name} ended with exit code {code}; see {log}")
        self.name = name
        self.code = code
        self.log = log


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildCommand:
    """What to run, and how it ends.

    Attributes:
        name: what people call it: "synapse".
        arguments: program and arguments; no shell is involved.
        log: file that stdout and stderr are appended to; made with mode 0600.
        environment: the whole environment; ours when None.
        directory: working directory; ours when None.
        stop_signals: sent one after the other, each given `patience_seconds`, before SIGKILL.
        death_signal: what the kernel sends it when we die without stopping it (Linux only).
        become: runs in the child before the program starts, to take another identity.
    """

    name: str
    arguments: Sequence[str]
    log: Path
    environment: Mapping[str, str] | None = None
    directory: Path | None = None
    stop_signals: Sequence[signal.Signals] = (signal.SIGTERM,)
    death_signal: signal.Signals = signal.SIGKILL
    patience_seconds: float = 10.0
    become: Callable[[], None] | None = None


@dataclass(slots=True)
class ChildProcess:
    """One run of a command.

    The kernel ties the child to the *thread* that started it, so `start` belongs on the main
    thread. macOS has no such tie: there a child outlives a parent that is killed with -9.
    """

    command: ChildCommand
    _popen: "subprocess.Popen[bytes]" = field(init=False)

    @classmethod
    def start(cls, command: ChildCommand) -> "ChildProcess":
        """Start the command in a session of its own, so that Ctrl-C reaches only us."""
        child = cls(command)
        with _open_log(command.log) as log:
            child._popen = subprocess.Popen(
                list(command.arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if command.environment is None else dict(command.environment),
                cwd=command.directory,
                start_new_session=True,
                preexec_fn=_last_will(command, os.getpid()),
            )
        return child

    @property
    def pid(self) -> int:
        """Its process id, also after its end."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative is the signal that ended it."""
        return self._popen.poll()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.exit_code is None

    def require_running(self) -> None:
        """Raises: ChildDiedError: it has ended."""
        if not self.running:
            raise ChildDiedError(self.command.name, self.exit_code, self.command.log)

    def wait(self) -> int:
        """Block until it ends by itself; the exit code."""
        return self._popen.wait()

    async def ended(self) -> int:
        """Wait until it ends, however; the exit code."""
        while (code := self.exit_code) is None:  # noqa: ASYNC110 - a child has no Event
            await asyncio.sleep(0.05)
        return code

    def stop(self) -> None:
        """End it: each stop signal in turn, then SIGKILL. Does nothing to what has ended."""
        for stop_signal in self.command.stop_signals:
            if self._stopped_by(stop_signal, self.command.patience_seconds):
                return
        self._stopped_by(signal.SIGKILL, None)

    def _stopped_by(self, stop_signal: signal.Signals, patience_seconds: float | None) -> bool:
        self._popen.send_signal(stop_signal)  # checks first that the pid is still this child
        try:
            self._popen.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


def _open_log(path: Path) -> BinaryIO:
    """Open a log file for appending; it is ours alone."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")


def _last_will(command: ChildCommand, parent: int) -> Callable[[], None]:
    def in_child() -> None:
        if command.become is not None:
            command.become()
        if DIES_WITH_PARENT:  # after `become`: a change of user clears it
            LIBC.prctl(PR_SET_PDEATHSIG, int(command.death_signal), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

    return in_child
