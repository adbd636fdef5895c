"""What may come of one attempt to deliver a transaction."""

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Acked:
    """The appservice took the transaction: any 2xx, whatever its body."""

    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The appservice answered, and the answer was no.

    Attributes:
        status: HTTP status, 300 to 599.
        errcode: the Matrix error code, where the answer had a plausible one.
        retry_after_seconds: what a Retry-After header asked for.
    """

    status: int
    errcode: str | None = None
    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreachable:
    """No answer: the appservice may or may not have processed the transaction.

    Attributes:
        reason: connection_refused, timeout, reset, … ; fit for logs.
    """

    reason: str


Outcome: TypeAlias = Acked | Refused | Unreachable
