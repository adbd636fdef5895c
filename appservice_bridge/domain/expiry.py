"""How long typing and presence are worth telling: what else there is never grows too old."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Fleeting(StrEnum):
    """Ephemeral events that say how things are at the moment, by their type."""

    TYPING = "m.typing"
    PRESENCE = "m.presence"


class Waited(NamedTuple):
    """What fleeting event an item is, and for how long it has waited since its capture.

    Attributes:
        type: one of `Fleeting`, or what a newer release wrote.
    """

    type: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Expiry:
    """Times to live, in seconds since the capture; None: for ever."""

    typing_seconds: float | None = 60.0
    presence_seconds: float | None = 300.0

    def is_over(self, waited: Waited) -> bool:
        """Whether nobody needs to hear it any more."""
        match waited.type:
            case Fleeting.TYPING:
                longest = self.typing_seconds
            case Fleeting.PRESENCE:
                longest = self.presence_seconds
            case _:
                longest = None
        return longest is not None and waited.seconds > longest
