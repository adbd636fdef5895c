"""Lengths of time as operators write them."""

import re
from typing import Final

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_WRITTEN: Final = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhd])")


def seconds_of(text: str) -> float:
    """The seconds in 90s, 15m, 24h or 7d.

    Raises:
        ValueError: it is none of them.
    """
    written = _WRITTEN.fullmatch(text.strip())
    if written is None:
        raise ValueError("write it like 90s, 15m, 24h or 7d")
    return float(written[1]) * _UNITS[written[2]]
