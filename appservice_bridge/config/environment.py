"""Settings from environment variables, and which variable each of them came from."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from appservice_bridge.config.document import Location
from appservice_bridge.config.faults import Fault
from appservice_bridge.config.model import Config
from appservice_bridge.domain.nearest import nearest

PREFIX: Final = "APPSERVICE_BRIDGE_"
CONFIG_VARIABLE: Final = f"{PREFIX}CONFIG"
"""Names the config file; every other variable with the prefix overrides a key of it."""

_DELIMITER: Final = "__"


class _Settings(Config, BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter=_DELIMITER, validate_default=True
    )


class _Source(EnvSettingsSource):
    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """Keep what is not JSON as text, so that validation refuses it by name."""
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What the environment says, as one nested mapping.

    Attributes:
        values: the keys as in the YAML file.
        variables: the path of keys that each variable sets.
    """

    values: dict[str, Any] = field(repr=False)
    variables: Mapping[str, Location]

    def variable(self, location: Location) -> str | None:
        """The variable that set the value at a location, if one did."""
        if not holds(self.values, location):
            return None
        for name, path in self.variables.items():
            if location[: len(path)] == path:
                return name
        return None

    def variable_inside(self, location: Location) -> str | None:
        """A variable that set some part of what is at a location, if one did."""
        inside = (
            name for name, path in self.variables.items() if path[: len(location)] == location
        )
        return next(inside, None)


def from_environment() -> Environment:
    """Read the process' environment; values are not yet validated."""
    return Environment(values=_Source(_Settings)(), variables=dict(_variables()))


def unknown_variables() -> Iterator[Fault]:
    """A fault for each nested variable that sets nothing.

    One without `__` may be somebody else's: Kubernetes makes
    `APPSERVICE_BRIDGE_PORT` for a service of our name.
    """
    for name, path in _variables():
        key = str(path[0])
        if key in Config.model_fields or len(path) == 1:
            continue
        near = nearest(key, Config.model_fields)
        meant = PREFIX + _DELIMITER.join([near or "", *map(str, path[1:])]).upper()
        hint = f"did you mean {meant}?" if near else "unset it"
        yield Fault(file="environment", reason=f"{name} sets no known key; {hint}")


def _variables() -> Iterator[tuple[str, Location]]:
    for name in sorted(os.environ):
        if name.upper().startswith(PREFIX) and name.upper() != CONFIG_VARIABLE:
            yield name, tuple(name[len(PREFIX) :].lower().split(_DELIMITER))


def holds(values: Any, location: Location) -> bool:
    """Whether nested mappings and lists have something at a location."""
    for part in location:
        inside = part in values if isinstance(values, dict) else _has_index(values, part)
        if not inside:
            return False
        values = values[part]
    return True


def _has_index(values: Any, part: str | int) -> bool:
    return isinstance(values, list) and isinstance(part, int) and part < len(values)
