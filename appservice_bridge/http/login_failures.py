"""How often an address may show a token that is none of ours before it is told to slow down."""

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Final

BURST: Final = 10
REFILL_SECONDS: Final = 6.0  # for one more
MOST_ADDRESSES: Final = 10_000
_NETWORK: Final = 64  # of an IPv6 address: whoever has one has all of it


class LoginFailures:
    """A bucket per address; it never stops a token that is right.

    Behind a proxy everybody has one address, and whoever guesses there would else lock all
    operators out. What keeps a token from being guessed is its length, which `check` looks at;
    this bounds what guessing costs us, in the log above all.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def failed(self, address: str | None) -> float:
        """Count one; 0, or for how many seconds the address has had its share."""
        key, now = _network(address), self._clock()
        count, at = self._failures.pop(key, (0.0, now))
        count = max(0.0, count - (now - at) / REFILL_SECONDS)
        over = count + 1 > BURST
        self._failures[key] = (count if over else count + 1, now)
        if len(self._failures) > MOST_ADDRESSES:
            self._failures.popitem(last=False)
        return math.ceil((count + 1 - BURST) * REFILL_SECONDS) if over else 0


def _network(address: str | None) -> str:
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:
        return ""
    if found.version == 6:
        return str(ipaddress.ip_network((int(found), _NETWORK), strict=False))
    return str(found)
