"""From a path to a configuration that is sound as a whole, or every fault of it at once."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from appservice_bridge.config.agreement import Sections, contradictions, doubts, strangers
from appservice_bridge.config.document import Document, Location, read
from appservice_bridge.config.environment import (
    Environment,
    from_environment,
    holds,
    unknown_variables,
)
from appservice_bridge.config.explaining import explained
from appservice_bridge.config.faults import ConfigError, Fault, in_order
from appservice_bridge.config.model import AppserviceSection, Config, ListenOn, Section
from appservice_bridge.config.registrations import Reading, find, read_registration, shared
from appservice_bridge.domain.registration import Registration

_Part = TypeVar("_Part", bound=Section)


SHORT_TOKEN: Final = 20  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A sound configuration.

    Attributes:
        registrations: in the order of their files' names; ids and tokens are unique.
        warnings: what is allowed, but hardly meant.
    """

    config: Config
    registrations: tuple[Registration, ...]
    warnings: tuple[Fault, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """What has been read and not yet been found sound.

    Attributes:
        keys: the file with the environment laid over it.
        base: the config file's directory.
    """

    document: Document
    environment: Environment
    keys: dict[str, Any]
    base: Path

    def fault(self, location: Location, reason: str) -> Fault:
        """A fault at the variable or the line that set the value."""
        variable = self.environment.variable(location)
        if variable is None and not holds(self.document.data, location):
            variable = self.environment.variable_inside(location)
        if variable is None:
            return self.document.fault(location, reason)
        form = "; in a variable, as JSON" if reason.endswith("must be a list") else ""
        return Fault(file="environment", reason=f"{variable}: {reason}{form}")

    def part(self, model: type[_Part], value: Any) -> _Part | None:
        """One section by itself, so that a fault elsewhere does not hide this one's."""
        try:
            return model.model_validate(value, context={"base": self.base})
        except ValidationError:
            return None


def load(path: Path) -> Loaded:
    """Read the config file, the environment, and all registrations.

    Raises:
        ConfigError: with every fault there is.
    """
    draft = _draft(path)
    faults = [*draft.document.duplicates, *unknown_variables()]
    config = _validated(draft, faults)
    readings = _registrations(draft, faults)
    sections = _sections(draft)
    faults += shared(readings)
    faults += (draft.fault(*each) for each in strangers(sections, readings))
    faults += contradictions(sections, readings)
    warnings = [warning for reading in readings for warning in reading.warnings]
    warnings += doubts(sections, readings)
    warnings += (draft.fault(*each) for each in _oddities(config))
    if config is None or faults:
        raise ConfigError(
            in_order(faults, draft.document.file), in_order(warnings, draft.document.file)
        )
    found = tuple(reading.registration for reading in readings if reading.registration)
    return Loaded(
        config=config, registrations=found, warnings=tuple(in_order(warnings, draft.document.file))
    )


def load_alone(path: Path) -> Config:
    """Read the config file and the environment, whatever the registrations hold.

    Raises:
        ConfigError: with every fault of these two.
    """
    draft = _draft(path)
    faults = [*draft.document.duplicates, *unknown_variables()]
    config = _validated(draft, faults)
    if config is None or faults:
        raise ConfigError(in_order(faults, draft.document.file))
    return config


def _draft(path: Path) -> _Draft:
    document, environment = read(path), from_environment()
    keys = _overlaid(_without_nulls(document.data), environment.values)
    return _Draft(document=document, environment=environment, keys=keys, base=path.parent)


def _without_nulls(data: dict[str, Any]) -> dict[str, Any]:
    """A key with nothing after it means its default; an appservice stays, with all defaults."""
    kept = {
        key: _without_nulls(value) if isinstance(value, dict) and key != "appservices" else value
        for key, value in data.items()
        if value is not None
    }
    if isinstance(kept.get("appservices"), dict):
        kept["appservices"] = {
            name: _without_nulls(section) if isinstance(section, dict) else section or {}
            for name, section in kept["appservices"].items()
        }
    return kept


def _overlaid(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """The one mapping laid over the other, key by key; lists are replaced whole."""
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            both[key] = _overlaid(old, value)
        else:
            both[key] = value
    return both


def _validated(draft: _Draft, faults: list[Fault]) -> Config | None:
    try:
        return Config.model_validate(draft.keys, context={"base": draft.base})
    except ValidationError as error:
        faults += (draft.fault(*each) for each in explained(error, Config))
        return None


def _registrations(draft: _Draft, faults: list[Fault]) -> list[Reading]:
    """Every registration file that is named; the patterns stand even if the config does not."""
    named = draft.keys.get("registrations", Config.model_fields["registrations"].default)
    patterns = [each for each in named if isinstance(each, str)] if _is_list(named) else []
    files, unmatched = find(patterns, base=draft.base)
    left = [pattern for pattern in patterns if pattern not in unmatched]
    for pattern in unmatched:
        place: Location = ("registrations", list(named).index(pattern))
        faults.append(draft.fault(place, f"{pattern} {_unmatched(draft, left)}"))
    readings = [read_registration(file) for file in files]
    faults += (fault for reading in readings for fault in reading.faults)
    return readings


def _unmatched(draft: _Draft, left: list[str]) -> str:
    """Why it is refused, and the line for an operator who means it.

    A directory that is not mounted looks the same as one whose last file was removed, and what
    comes for an appservice that is gone is not kept.
    """
    variable = draft.environment.variable(("registrations",))
    wanted = f"{variable}=" if variable else "registrations: "
    wanted += json.dumps(left, ensure_ascii=False)
    return (
        "matches no file; relative paths start at the config file; if its appservices are to be "
        f"gone, write `{wanted}`"
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _sections(draft: _Draft) -> Sections:
    named = draft.keys.get("appservices", {})
    named = named if isinstance(named, dict) else {}
    return Sections(
        listen=draft.part(ListenOn, draft.keys.get("listen", {})),
        appservices={name: draft.part(AppserviceSection, each) for name, each in named.items()},
    )


def _oddities(config: Config | None) -> Iterator[tuple[Location, str]]:
    """What is allowed, but hardly meant."""
    if config is None:
        return
    if not config.registrations:
        yield ("registrations",), "no registrations: nothing is delivered to anyone"
    for token in config.admin.tokens:
        if len(token.token()) < SHORT_TOKEN:
            reason = f"the token of {token.name} can be guessed; `openssl rand -hex 32` makes one"
            yield ("admin", "tokens"), reason
    if config.hosts_many_databases:
        voided = "nothing is lost, transactions are sealed, nothing comes twice"
        reason = f"several hosts: without a synchronous standby a failover voids: {voided}"
        yield ("database",), reason
        if "target_session_attrs" not in config.database:
            yield ("database",), "several hosts: add target_session_attrs=primary"
