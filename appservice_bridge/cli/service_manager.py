"""What a worker tells the service manager that started it, as systemd's sd_notify does."""

import asyncio
import os
import socket
import time
from collections.abc import Mapping
from typing import Final, Self

import structlog

from appservice_bridge.domain.reloading import ReloadOutcome, ReloadRefused, ReloadWaits

log = structlog.get_logger(__name__)

SEND_SECONDS: Final = 1.0  # a manager that does not read must not hold up the worker
BEATS_PER_TERM: Final = 2  # as systemd advises: at half of the time after which it would kill


class ServiceManager:
    """Says how far the worker is, where somebody asked to hear it; else says nothing.

    Telling never fails the worker: a manager that cannot be reached is logged, and that is all.

    Attributes:
        address: of the datagram socket that listens; None: nobody listens.
        beat_seconds: how often to say that the event loop turns; None: nobody counts.
    """

    def __init__(self, address: str | None = None, beat_seconds: float | None = None) -> None:
        self.address = address
        self.beat_seconds = beat_seconds

    @classmethod
    def named_by(cls, environment: Mapping[str, str]) -> Self:
        """The one of `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`."""
        address = environment.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return cls()
        return cls(address, _beat_seconds(environment))

    def ready(self, status: str) -> None:
        """The worker takes in and delivers."""
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """The configuration is being read again; `reloaded` follows."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now}")

    def reloaded(self, outcome: ReloadOutcome, status: str) -> None:
        """The reload is over, and the worker serves as before or by what it has read."""
        if isinstance(outcome, ReloadRefused):
            status = f"{status}; what was read last is refused, the log says why"
        elif isinstance(outcome, ReloadWaits):
            status = f"{status}; what was read last waits for the database"
        self.ready(status)

    def stopping(self) -> None:
        """The worker finishes what is in flight, and ends."""
        self._tell("STOPPING=1", "STATUS=finishes what is in flight")

    async def beat(self) -> None:
        """Say again and again that the event loop turns, until cancelled.

        It says nothing of the database: a worker that rests until that is back is to be left alone.
        """
        while self.beat_seconds is not None:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self.beat_seconds)

    def _tell(self, *lines: str) -> None:
        if self.address is None:
            return
        address = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaking:
                speaking.settimeout(SEND_SECONDS)
                speaking.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            log.warning("service_manager.not_told", what=lines[0], reason=type(error).__name__)


def _beat_seconds(environment: Mapping[str, str]) -> float | None:
    """How often to beat; None where no watchdog waits, or it waits for another process."""
    wanted, of = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not (wanted.isdecimal() and int(wanted)) or of not in {"", str(os.getpid())}:
        return None
    return int(wanted) / 1_000_000 / BEATS_PER_TERM
