"""The processes of one `dev`: waited for at the start, and started again when they die."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol

from appservice_bridge.dev.process import ChildDiedError, ChildProcess

LOOK_SECONDS: Final = 0.02
SHORTEST_REST_SECONDS: Final = 0.2
LONGEST_REST_SECONDS: Final = 30.0


class Part(Protocol):
    """A process that can be started, and started again."""

    @property
    def child(self) -> ChildProcess:
        """The process of the last `launch`."""

    def launch(self) -> None:
        """Start the process and return at once; main thread."""

    async def ready(self) -> bool:
        """Whether it does its work yet; ChildDiedError if it has ended."""

    def stop(self) -> None:
        """End it."""


async def launched(part: Part) -> None:
    """Start a part and wait until it does its work, however long that takes.

    Raises:
        ChildDiedError: it ended instead.
    """
    part.launch()
    while not await part.ready():  # noqa: ASYNC110 - another process sets no Event of ours
        await asyncio.sleep(LOOK_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeper:
    """Starts one part again whenever it dies.

    Attributes:
        say: tells the person at the terminal.
        back: called when the part works again, as another process.
    """

    name: str
    part: Part
    say: Callable[[str], None]
    back: Callable[[], None]

    async def keep(self) -> NoReturn:
        """For ever."""
        while True:
            code = await self.part.child.ended()
            self.say(
                f"{self.name} (pid {self.part.child.pid}) died {_how(code)}: starting it again"
            )
            await self._start_again()
            self.back()
            self.say(f"{self.name} works again as pid {self.part.child.pid}")

    async def _start_again(self) -> None:
        rest_seconds = SHORTEST_REST_SECONDS
        while True:
            try:
                await launched(self.part)
            except ChildDiedError as died:
                self.say(f"{died}; trying again in {rest_seconds:.1f} s")
                await asyncio.sleep(rest_seconds)
                rest_seconds = min(2 * rest_seconds, LONGEST_REST_SECONDS)
            else:
                return


def _how(code: int) -> str:
    return f"of signal {-code}" if code < 0 else f"with exit code {code}"
