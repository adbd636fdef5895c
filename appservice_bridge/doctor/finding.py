"""What is wrong, whom it concerns, and the exact thing to change."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is.

    Attributes:
        FAULT: something is not delivered, or will not be.
        DOUBT: it works, and may be not what was meant.
    """

    FAULT = "fault"
    DOUBT = "doubt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        code: one word for programs; it does not change between releases.
        what: a sentence; never a token or a payload.
        mend: what to do, with the line to change where there is one.
        appservice: whom it concerns; None: all.
    """

    code: str
    what: str
    mend: str
    level: Level = Level.FAULT
    appservice: str | None = None
