"""The module's own part of homeserver.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

_KNOWN: Final = ("role", "delete_delivered")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What stands under `config:`; a fault in it must not keep Synapse from starting.

    Attributes:
        role: the role that the bridge connects as; None: the one that Synapse connects as.
        delete_delivered: that role may delete from the inbox what was delivered.
        faults: what was not understood and is left out, a sentence each.
    """

    role: str | None = None
    delete_delivered: bool = True
    faults: tuple[str, ...] = ()

    @classmethod
    def read(cls, config: object) -> Self:
        """Take what is understood, and note what is not."""
        if not isinstance(config, Mapping):
            return cls(faults=("config must be a mapping, like `role: bridge`",))
        faults = [
            f"{key} is not a known key; known are: {', '.join(_KNOWN)}"
            for key in config
            if key not in _KNOWN
        ]
        role = config.get("role")
        if role is not None and not (isinstance(role, str) and role):
            faults.append("role must be the name of a role of Postgres")
            role = None
        delete_delivered = config.get("delete_delivered", True)
        if not isinstance(delete_delivered, bool):
            faults.append("delete_delivered must be true or false; it is taken for false")
            delete_delivered = False
        return cls(role=role, delete_delivered=delete_delivered, faults=tuple(faults))
