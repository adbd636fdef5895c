"""A Synapse in an environment of its own, in the user's cache: made once, found again, shared.

What Synapse pins is thus nothing to the bot that is tested, nor the other way round.
"""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from appservice_bridge.domain.errors import BridgeError

LOCK: Final = Path(__file__).with_name("synapse.txt")
PINNED: Final = re.compile(r"^matrix-synapse==(\S+)", re.MULTILINE)
LAST_LINES: Final = 15
QUIET: Final = ("--quiet", "--disable-pip-version-check", "--no-input")


class EnvironmentNotMadeError(BridgeError):
    """Synapse could not be installed; nothing is left, and the next run tries again."""

    def __init__(self, path: Path, said: str) -> None:
        lines = "\n".join(said.strip().splitlines()[-LAST_LINES:])
        super().__init__(
            f"could not install Synapse into {path}, which needs the package index once:\n{lines}\n"
            "Or name a Python that has matrix-synapse and psycopg2: "
            "appservice_bridge_synapse_python in pytest's configuration"
        )
        self.path = path


@dataclass(frozen=True, slots=True, kw_only=True)
class SynapseEnvironment:
    """One environment, for one set of versions and one Python.

    Attributes:
        cache: directory that holds all of them.
        lock: requirements with hashes, complete.
    """

    cache: Path
    lock: Path = LOCK

    @property
    def version(self) -> str:
        """The release of Synapse that is locked."""
        found = PINNED.search(self.lock.read_text("utf-8"))
        return found[1] if found else "unknown"

    @property
    def path(self) -> Path:
        """Where it is, or will be."""
        digest = hashlib.sha256(self.lock.read_bytes()).hexdigest()[:8]
        python = f"{sys.implementation.cache_tag}-{platform.system()}-{platform.machine()}".lower()
        return self.cache / f"synapse-{self.version}-{digest}-{python}"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.path / "bin" / "python"

    def ensure(self, say: Callable[[str], None]) -> Path:
        """The interpreter; installs Synapse unless that was done before, then without network.

        Whoever comes while another makes it waits. Dying on the way leaves nothing that is taken
        for whole.

        Args:
            say: tells the person at the terminal, before it takes long.

        Raises:
            EnvironmentNotMadeError: no package index, or no disk.
        """
        if self._works():
            return self.python
        self.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(self.path.with_name(f"{self.path.name}.lock")):
            if not self._works():  # another made it while we waited
                say(f"installing Synapse {self.version} into {self.path}, once; a minute or so")
                self._make()
        return self.python

    def _works(self) -> bool:
        """Whole, and the Python that it was made with is still there."""
        return self.python.exists()

    def _make(self) -> None:
        for remains in (*self.cache.glob(f".{self.path.name}.*"), self.path):
            shutil.rmtree(remains, ignore_errors=True)  # of who was killed; or its Python is gone
        half = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.cache))
        try:
            self._run(sys.executable, "-m", "venv", str(half))
            pip = (str(half / "bin" / "python"), "-m", "pip", "install", *QUIET)
            self._run(*pip, "--no-deps", "--require-hashes", "-r", str(self.lock))
            half.replace(self.path)  # nothing in it that we run knows its own name
        finally:
            shutil.rmtree(half, ignore_errors=True)

    def _run(self, *command: str) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        done = subprocess.run(
            command,
            env=kept,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise EnvironmentNotMadeError(self.path, done.stdout)


def user_cache() -> Path:
    """The directory of this user's caches that is ours."""
    named = os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named) / "appservice-bridge"
    caches = "Library/Caches" if platform.system() == "Darwin" else ".cache"
    return Path.home() / caches / "appservice-bridge"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
