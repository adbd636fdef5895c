"""How far long work is, told to whoever watches."""

from collections.abc import Callable
from typing import TypeAlias

Tell: TypeAlias = Callable[[int, int | None], None]
"""Is told how much is done, and of how much; None: nobody knows."""


def nobody(_done: int, _of: int | None) -> None:
    """Nobody watches."""
