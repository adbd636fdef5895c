"""What may come of one attempt to deliver a transaction."""

from dataclasses import dataclass, field
from typing import Final, TypeAlias

ANSWER_CHARACTERS: Final = 500  # of a refusal's body; more than an error message takes


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
        answer: the beginning of the body; kept with a dead letter, never logged or shown, for it
            may quote what was sent.
        sent_before: within this attempt it was sent once already, and the connection was lost.
    """

    status: int
    errcode: str | None = None
    retry_after_seconds: float | None = None
    answer: str = field(default="", repr=False)
    sent_before: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreachable:
    """No answer: the appservice may or may not have processed the transaction.

    Attributes:
        reason: connection_refused, timeout, reset, … ; fit for logs.
        unsent: nothing of it left this machine, so that it was certainly not processed.
    """

    reason: str
    unsent: bool = False


Outcome: TypeAlias = Acked | Refused | Unreachable
