"""What follows a transaction, built while that one is sealed and sent."""

import asyncio
from collections.abc import Awaitable, Callable

from appservice_bridge.delivery.bodies import Bodies
from appservice_bridge.storage.turns import Following


class Ahead:
    """A transaction that is being built, behind one that may not be sealed yet.

    Nothing of it is certain: the commit that seals it sees whether all is as it was believed.
    """

    def __init__(
        self,
        behind: int,
        build: Callable[[], Awaitable[Following | None]],
        bodies: Bodies,
    ) -> None:
        """`behind`: the number of the transaction before it; its body counts among `bodies`."""
        self.behind = behind
        self._bodies = bodies
        self.building = asyncio.create_task(self._held(build))

    async def _held(self, build: Callable[[], Awaitable[Following | None]]) -> Following | None:
        built = await build()
        if built is not None:
            self._bodies.hold(self, len(built.sealed.body))
        return built

    def drop(self) -> None:
        """It is of no more use, or someone else holds its body."""
        self.building.cancel()
        self._bodies.hold(self, 0)

    def require_well(self) -> None:
        """Pass on what it ended with, so far, which nobody has asked for otherwise."""
        if self.building.done() and not self.building.cancelled():
            self.building.result()
