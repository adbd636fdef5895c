"""What is wrong with a config or a registration: where, why, and how to mend it."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from appservice_bridge.domain.errors import BridgeError

_NEAR = 0.6  # difflib's own default; below it suggestions are noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing an operator must mend, or, as a warning, should look at.

    Attributes:
        file: path as the operator would type it, or `environment`.
        line: 1-based; None where no line can be named.
        reason: one line; never holds a token, a password or a DSN.
    """

    file: str
    line: int | None = None
    reason: str

    @property
    def place(self) -> str:
        """`file:line`, or the file alone."""
        return self.file if self.line is None else f"{self.file}:{self.line}"

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class ConfigError(BridgeError):
    """The configuration is refused; show every fault, keep what ran before, do not retry.

    Attributes:
        faults: at least one.
        warnings: what was noticed on the way, as with a sound configuration.
    """

    def __init__(self, faults: Iterable[Fault], warnings: Iterable[Fault] = ()) -> None:
        self.faults = tuple(faults)
        self.warnings = tuple(warnings)
        super().__init__("\n".join(map(str, self.faults)))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was most likely meant to be, if any comes near."""
    by_folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_folded, n=1, cutoff=_NEAR)
    return by_folded[close[0]] if close else None
