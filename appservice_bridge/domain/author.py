"""Who changes something."""

from dataclasses import dataclass

COMMAND = "cli"


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """Whoever gave an order, as the audit names them.

    Attributes:
        name: of an admin token, or `cli:` and the user of the system.
        role: of the token, or `cli`.
        address: where the request came from; None for a command.
    """

    name: str
    role: str
    address: str | None = None
