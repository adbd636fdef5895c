"""How long a lane rests after a failed attempt."""

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Rests that double up to a ceiling.

    Attributes:
        first_seconds: rest after attempt 1; must be positive.
        ceiling_seconds: longest rest; at least `first_seconds`.

    Raises:
        ValueError: if the bounds are out of order.
    """

    first_seconds: float = 1.0
    ceiling_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not 0 < self.first_seconds <= self.ceiling_seconds:
            bounds = f"{self.first_seconds}, {self.ceiling_seconds}"
            raise ValueError(f"need 0 < first <= ceiling, got {bounds}")

    def rest_after(self, attempt: int) -> float:
        """Seconds to rest after the given 1-based attempt, before jitter."""
        doublings = min(attempt - 1, 64)  # past that, float range is the limit, not patience
        return min(self.ceiling_seconds, self.first_seconds * 2.0**doublings)

    def at_most(self, rest_seconds: float) -> float:
        """What is left of a rest: more than the ceiling only if a clock was set back.

        One without end stays so: somebody has to look.
        """
        return rest_seconds if math.isinf(rest_seconds) else min(rest_seconds, self.ceiling_seconds)

    def rest(self, attempt: int, *, retry_after_seconds: float | None = None) -> float:
        """Seconds to rest, jitter included; what the appservice asked for, up to the ceiling.

        It cannot ask for less than the first rest: `Retry-After: 0` would else be a busy loop.
        """
        if retry_after_seconds is not None:
            return min(max(retry_after_seconds, self.first_seconds), self.ceiling_seconds)
        return self.rest_after(attempt) * random.uniform(0.75, 1.0)  # noqa: S311 - not a secret
