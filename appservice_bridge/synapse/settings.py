"""The module's own part of homeserver.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What stands under `config:`; a fault in it must not keep Synapse from starting.

    Attributes:
        role: the role that the bridge connects as; None: the one that Synapse connects as.
        faults: what was not understood and is left out, a sentence each.
    """

    role: str | None = None
    faults: tuple[str, ...] = ()

    @classmethod
    def read(cls, config: object) -> Self:
        """Take what is understood, and note what is not."""
        if not isinstance(config, Mapping):
            return cls(faults=("config must be a mapping, like `role: bridge`",))
        faults = [f"{key} is not a known key; known is: role" for key in config if key != "role"]
        role = config.get("role")
        if role is not None and not (isinstance(role, str) and role):
            faults.append("role must be the name of a role of Postgres")
            role = None
        return cls(role=role, faults=tuple(faults))
