"""How many bytes of bodies this worker holds, so that any number of lanes fits into its memory."""

import asyncio
from collections import deque
from typing import Final, NamedTuple

MOST_BYTES: Final = 64 * 1024 * 1024
LEAST_BODY_BYTES: Final = 16 * 1024
SHARE: Final = 8  # of what is left, for one body
PATIENCE_SECONDS: Final = 1.0  # without anyone's turn: who has the room keeps it
CROWDED_SECONDS: Final = 30.0


class _Waiter(NamedTuple):
    whose: object
    size: int
    turn: "asyncio.Future[bool]"


class Bodies:
    """What the lanes of one worker hold.

    What is sealed anew waits in line for room as long as the line moves, for a few large bodies go
    faster than many small ones. Where it stands still, appservices hang: then nobody waits for a
    while, and bodies are cut smaller as the room shrinks. What was sealed before has the size that
    it has, and waits until it fits.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._held: dict[object, int] = {}
        self._line: deque[_Waiter] = deque()
        self._moved_at = 0.0
        self._crowded_until = 0.0
        self.total = 0

    def hold(self, whose: object, size: int) -> None:
        """From now on it holds so many bytes, whatever it held before."""
        self._set(whose, size)
        while self._line and self._has_room_for(self._line[0].size):
            waiter = self._line.popleft()
            if not waiter.turn.done():  # its lane may be cancelled
                self._reserve(waiter.whose, waiter.size)
                waiter.turn.set_result(True)
                self._moved_at = asyncio.get_running_loop().time()

    async def room(self, whose: object, size: int) -> bool:
        """Hold so much more, for a body whose size is not known yet; or False: it must be cut."""
        now = asyncio.get_running_loop().time()
        if now < self._crowded_until:
            return False
        if not self._line and self._has_room_for(size):
            self._reserve(whose, size)
            return True
        if not self._line:
            self._moved_at = now
        waiter = _Waiter(whose, size, asyncio.get_running_loop().create_future())
        self._line.append(waiter)
        return await self._wait(waiter)

    async def _wait(self, waiter: _Waiter) -> bool:
        loop = asyncio.get_running_loop()
        try:
            while not waiter.turn.done():
                await asyncio.wait({waiter.turn}, timeout=PATIENCE_SECONDS)
                if loop.time() >= self._moved_at + PATIENCE_SECONDS:
                    self._give_up_waiting(loop.time())
        finally:
            waiter.turn.cancel()
        return waiter.turn.result()

    def _give_up_waiting(self, now: float) -> None:
        while self._line:
            turn = self._line.popleft().turn
            if not turn.done():
                turn.set_result(False)
                self._crowded_until = now + CROWDED_SECONDS

    def cap(self, max_body_bytes: int) -> int:
        """The most bytes of the next body."""
        free = self._most - self.total
        return min(max_body_bytes, max(free // SHARE, LEAST_BODY_BYTES))

    def _has_room_for(self, size: int) -> bool:
        return self.cap(size) == size

    def _reserve(self, whose: object, size: int) -> None:
        self._set(whose, self._held.get(whose, 0) + size)

    def _set(self, whose: object, size: int) -> None:
        self.total += size - self._held.pop(whose, 0)
        if size:
            self._held[whose] = size

    @property
    def roomy(self) -> bool:
        """Whether there is room to build ahead."""
        return 2 * self.total < self._most

    def fits(self, whose: object, size: int) -> bool:
        """Whether there is room for a body of a size that cannot be changed; alone it always is."""
        others = self.total - self._held.get(whose, 0)
        return others == 0 or others + size <= self._most
