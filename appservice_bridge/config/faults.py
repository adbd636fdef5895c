"""What is wrong with a config or a registration: where, why, and how to mend it."""

from collections.abc import Iterable
from dataclasses import dataclass

from appservice_bridge.domain.errors import BridgeError


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


def in_order(found: Iterable[Fault], first: str) -> list[Fault]:
    """As one mends them: the file that is `first`, then the others, each from the top down."""
    every = list(found)
    files = list(dict.fromkeys([first, *(fault.file for fault in every)]))
    return sorted(every, key=lambda fault: (files.index(fault.file), fault.line or 0))
