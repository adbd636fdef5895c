"""Asking for the configuration to be read again, and what came of it."""

import asyncio
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloaded:
    """Another configuration is in force now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchanged:
    """The files say what they said before; nothing was done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadRefused:
    """What was in force before stays.

    Attributes:
        reasons: one line each; none holds a token, a password or a DSN.
    """

    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadWaits:
    """What was in force before stays for now; it is tried again by itself."""

    reason: str


ReloadOutcome: TypeAlias = Reloaded | Unchanged | ReloadRefused | ReloadWaits


class Reloads:
    """Between those who ask for a reload and the one who does it.

    All that ask before one begins share it; who asks while one is at work gets the next.
    """

    def __init__(self) -> None:
        self.last: ReloadOutcome | None = None
        self._asked = asyncio.Event()
        self._waiting: list[asyncio.Future[ReloadOutcome]] = []
        self._served: list[asyncio.Future[ReloadOutcome]] = []

    def ask(self) -> None:
        """Let there be a reload, soon."""
        self._asked.set()

    async def outcome(self) -> ReloadOutcome:
        """Ask, and wait for what comes of it."""
        answer: asyncio.Future[ReloadOutcome] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self.ask()
        return await answer

    async def begin(self) -> None:
        """Wait until someone asks; `finish` answers all who did by then."""
        await self._asked.wait()
        self._asked.clear()
        self._served, self._waiting = self._served + self._waiting, []

    def finish(self, outcome: ReloadOutcome) -> None:
        """The reload that began is over."""
        self.last = outcome
        served, self._served = self._served, []
        for answer in served:
            if not answer.done():  # who asked may be gone
                answer.set_result(outcome)
