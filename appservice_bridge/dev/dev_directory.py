"""The directory of one `dev`: what lies where, its secrets, and that only one `dev` uses it."""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from appservice_bridge.dev.private_file import write_private
from appservice_bridge.domain.errors import BridgeError

SECRETS: Final = (
    "registration_shared_secret",
    "admin_token",
    "person_password",
    "bot_as_token",
    "bot_hs_token",
)


class DirectoryInUseError(BridgeError):
    """Another `dev` runs in this directory; stop it or take another directory."""

    def __init__(self, directory: Path, pid: str) -> None:
        super().__init__(
            f"another dev (pid {pid or 'unknown'}) runs in {directory};"
            " stop it, or give this one another --dir"
        )
        self.directory = directory


@dataclass(frozen=True, slots=True)
class DevDirectory:
    """Paths below one directory, which survives from one run to the next."""

    path: Path

    @property
    def config(self) -> Path:
        """The bridge's configuration."""
        return self.path / "bridge.yaml"

    @property
    def env(self) -> Path:
        """What a program that drives this `dev` has to know."""
        return self.path / "env.json"

    @property
    def admin_token(self) -> Path:
        """File with the token for the bridge's admin port."""
        return self.path / "admin.token"

    def log(self, name: str) -> Path:
        """Where a part writes its log."""
        return self.path / f"{name}.log"

    def for_bridge(self, name: str) -> Path:
        """A registration as the bridge reads it."""
        return self._folder("registrations") / f"{name}.yaml"

    def for_homeserver(self, name: str) -> Path:
        """The homeserver's copy of a registration."""
        return self._folder("homeserver-registrations") / f"{name}.yaml"

    def secrets(self) -> dict[str, str]:
        """Random once, then the same for every run here."""
        file = self.path / "secrets.json"
        known: dict[str, str] = json.loads(file.read_text("utf-8")) if file.exists() else {}
        fresh = {name: secrets.token_urlsafe(24) for name in SECRETS if name not in known}
        if fresh:
            write_private(file, json.dumps(known | fresh))
        return known | fresh

    def _folder(self, name: str) -> Path:
        folder = self.path / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder


@contextmanager
def taken(path: Path) -> Iterator[DevDirectory]:
    """Make the directory, for us alone, and keep every other `dev` out.

    Raises:
        DirectoryInUseError: another one was here first.
    """
    path = path.resolve()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (path / "dev.lock").open("a+") as lock:
        _lock(lock, path)
        directory = DevDirectory(path)
        directory.env.unlink(missing_ok=True)  # of a run that was killed
        try:
            yield directory
        finally:
            directory.env.unlink(missing_ok=True)


def _lock(lock: TextIO, path: Path) -> None:
    lock.seek(0)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DirectoryInUseError(path, lock.read().strip()) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
