"""An embedded Postgres: the binaries of a wheel under our own supervision."""

import fcntl
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TextIO

from appservice_bridge.dev.ports import LoopbackPort
from appservice_bridge.dev.postgres_cluster import SUPERUSER, Cluster, environment
from appservice_bridge.dev.process import ChildCommand, ChildProcess
from appservice_bridge.dev.unprivileged import ordinary_user
from appservice_bridge.domain.errors import BridgeError

START_ATTEMPTS: Final = 20
SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # no path to be too long, nothing to be left behind
    "max_connections": "200",
    "jit": "off",
    "timezone": "UTC",
    # An error must not carry a row or a statement into the log.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
}


class PostgresInUseError(BridgeError):
    """Another process supervises this data directory; use another one or end it."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(f"another process runs the Postgres in {data_dir}")
        self.data_dir = data_dir


@dataclass(slots=True)
class EmbeddedPostgres:
    """One Postgres server in one directory, on a loopback port, with a random password.

    It is a direct child and dies with us (Linux). For root it runs as `nobody`, wherever
    the directory and the binaries are. A restart keeps port and password.

    Attributes:
        data_dir: made by `start` when missing; its parent must exist. Lock, password and log
            stand beside it.
        settings: for the server's command line, over `SETTINGS`.
        durable: False gives durability away for speed, for tests only.
        binaries: another Postgres than the wheel's; 14 or newer.
    """

    data_dir: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    durable: bool = True
    binaries: Path | None = None
    port: LoopbackPort = field(default_factory=LoopbackPort)
    cluster: Cluster = field(init=False)
    _lock: TextIO | None = field(default=None, init=False)
    _child: ChildProcess | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.data_dir = self.data_dir.resolve()
        self.cluster = Cluster(
            data_dir=self.data_dir,
            binaries=self.binaries,
            identity=ordinary_user(owner_of=self.data_dir),
            log=self.data_dir.with_name(self.data_dir.name + ".log"),
        )

    @property
    def child(self) -> ChildProcess:
        """The running server.

        Raises:
            RuntimeError: before `start`.
        """
        if self._child is None:
            raise RuntimeError("this Postgres was not started")
        return self._child

    def dsn(self, database: str = "postgres") -> str:
        """How asyncpg and psycopg2 connect; it holds the password."""
        password = self.cluster.password_file.read_text("ascii")
        server = f"{SUPERUSER}:{password}@{self.port.address}"
        return f"postgresql://{server}/{database}?sslmode=disable"

    def start(self, *, patience_seconds: float = 3600.0) -> None:
        """Start the server and wait until it takes connections, recovery included.

        Belongs on the main thread, see `ChildProcess`.

        Raises:
            PostgresInUseError: someone else supervises this directory.
            ChildDiedError: it does not start; the log says why.
            TimeoutError: it was still recovering after `patience_seconds`.
        """
        self.launch()
        deadline = time.monotonic() + patience_seconds
        while not self._takes_connections():
            if time.monotonic() > deadline:
                raise TimeoutError(f"Postgres in {self.data_dir} is still starting")
            time.sleep(0.01)

    def launch(self) -> None:
        """Start the server and return as soon as it runs; it may be recovering for long.

        Raises: as `start`.
        """
        self._take_directory()
        self.cluster.ensure(sync=self.durable)
        for attempt in range(START_ATTEMPTS):
            time.sleep(0.1 * attempt)
            self.cluster.free_from_remains()
            self._child = ChildProcess.start(self._command())
            if self._gets_going():
                return
        self.child.require_running()

    async def ready(self) -> bool:
        """Whether it takes connections.

        Raises:
            ChildDiedError: it has ended.
        """
        return self._takes_connections()

    def stop(self) -> None:
        """Stop the server (sessions are cut, data is safe) and let go of the directory."""
        if self._child is not None:
            self._child.stop()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> "EmbeddedPostgres":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _take_directory(self) -> None:
        if self._lock is not None:
            return
        lock = self.data_dir.with_name(self.data_dir.name + ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise PostgresInUseError(self.data_dir) from None
        self._lock = lock

    def _takes_connections(self) -> bool:
        self.child.require_running()
        return self.cluster.status(self.child.pid) == "ready"

    def _gets_going(self) -> bool:
        """Wait until it listens or ends; a taken port or a dying predecessor makes it end."""
        while self.child.running:
            if self.cluster.status(self.child.pid):
                return True
            time.sleep(0.01)
        return False

    def _command(self) -> ChildCommand:
        durable = "on" if self.durable else "off"
        own = {"port": str(self.port.number), "fsync": durable, "synchronous_commit": durable}
        settings = {**SETTINGS, **own, **self.settings}
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        return ChildCommand(
            name="postgres",
            arguments=[self.cluster.program("postgres"), "-D", str(self.data_dir), *options],
            log=self.cluster.log,
            environment=environment(),
            directory=Path("/"),
            stop_signals=(signal.SIGINT, signal.SIGQUIT),
            death_signal=signal.SIGQUIT,
            patience_seconds=30.0,
            become=self.cluster.identity.become,
        )
