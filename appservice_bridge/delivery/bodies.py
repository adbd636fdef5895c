"""How many bytes of bodies this worker holds, so that any number of lanes fits into its memory."""

from typing import Final

MOST_BYTES: Final = 64 * 1024 * 1024
LEAST_BODY_BYTES: Final = 16 * 1024
SHARE: Final = 8  # of what is left, for one body


class Bodies:
    """What the lanes of one worker hold.

    What is sealed anew never waits: it is cut smaller as the room shrinks. What was sealed before
    has the size that it has, and waits until it fits.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._held: dict[object, int] = {}
        self.total = 0

    def hold(self, whose: object, size: int) -> None:
        """From now on it holds so many bytes, whatever it held before."""
        self.total += size - self._held.pop(whose, 0)
        if size:
            self._held[whose] = size

    def cap(self, max_body_bytes: int) -> int:
        """The most bytes of the next body."""
        free = self._most - self.total
        return min(max_body_bytes, max(free // SHARE, LEAST_BODY_BYTES))

    @property
    def roomy(self) -> bool:
        """Whether there is room to build ahead."""
        return 2 * self.total < self._most

    def fits(self, whose: object, size: int) -> bool:
        """Whether there is room for a body of a size that cannot be changed; alone it always is."""
        others = self.total - self._held.get(whose, 0)
        return others == 0 or others + size <= self._most
