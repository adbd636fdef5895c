"""SIGHUP: asks for a reload, and at no time ends the process."""

import signal
from collections.abc import Callable
from types import FrameType


class Hangups:
    """Takes SIGHUP from now until the process ends; one that comes early is not forgotten."""

    def __init__(self) -> None:
        self._early = False
        self._tell: Callable[[], object] | None = None
        signal.signal(signal.SIGHUP, self._came)

    def tell(self, told: Callable[[], object] | None) -> None:
        """Call this at every SIGHUP from now on, and now if one came before."""
        self._tell = told
        if told is not None and self._early:
            self._early = False
            told()

    def _came(self, _number: int, _frame: FrameType | None) -> None:
        if self._tell is None:
            self._early = True
        else:
            self._tell()
