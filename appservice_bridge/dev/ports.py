"""Ports on the loopback interface that stay ours while what listens on them is restarted."""

import socket
from dataclasses import dataclass, field
from typing import Final

from appservice_bridge.dev.process import DIES_WITH_PARENT

# Linux lets a server listen on a port that another socket merely holds, if both allow reuse.
HOLDS_PORTS: Final = DIES_WITH_PARENT


@dataclass(slots=True)
class LoopbackPort:
    """A free port; on Linux nobody else is given it before `release`.

    Elsewhere it was free a moment ago, and the one who listens must be ready to lose the race.
    """

    number: int = 0
    _held: socket.socket | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", self.number))
        self.number = held.getsockname()[1]
        self._held = held
        if not HOLDS_PORTS:
            self.release()

    @property
    def address(self) -> str:
        """Host and port, as in a configuration file."""
        return f"127.0.0.1:{self.number}"

    @property
    def url(self) -> str:
        """The port as a base URL."""
        return f"http://{self.address}"

    def release(self) -> None:
        """Give the port back."""
        if self._held is not None:
            self._held.close()
            self._held = None
