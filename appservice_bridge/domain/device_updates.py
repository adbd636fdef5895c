"""What a transaction tells of devices: device lists, one-time key counts, fallback key types."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from appservice_bridge.domain.transaction import Profile

_ALWAYS_COUNTED: Final = "signed_curve25519"  # a bot learns from its 0 that it must upload

_STABLE: Final = (
    ("device_lists",),
    ("device_one_time_keys_count",),
    ("device_unused_fallback_key_types",),
)
# Synapse sends the counts under two names, and client libraries read either.
_UNSTABLE: Final = (
    ("org.matrix.msc3202.device_lists",),
    (
        "org.matrix.msc3202.device_one_time_keys_count",
        "org.matrix.msc3202.device_one_time_key_counts",
    ),
    ("org.matrix.msc3202.device_unused_fallback_key_types",),
)
_NAMES: Final[Mapping[Profile, tuple[tuple[str, ...], ...]]] = {
    Profile.STABLE: _STABLE,
    Profile.UNSTABLE: _UNSTABLE,
    Profile.BOTH: tuple(a + b for a, b in zip(_STABLE, _UNSTABLE, strict=True)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceListUpdate:
    """A user whose devices `changed`, or who `left` view."""

    user_id: str
    change: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceKeys:
    """What is unclaimed of one device.

    Attributes:
        counts: one-time keys by algorithm; None: not told.
        fallback_types: algorithms whose fallback key is unused; None: not told.
    """

    user_id: str
    device_id: str
    counts: Mapping[str, int] | None = None
    fallback_types: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUpdates:
    """What one transaction tells of devices; of a user or device once."""

    lists: tuple[DeviceListUpdate, ...] = ()
    keys: tuple[DeviceKeys, ...] = field(default=())

    def __bool__(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.lists or self.keys)

    def fields(self, profile: Profile) -> bytes:
        """Members of a body, each with a comma before it; a field with nothing in it is left out.

        Source: MSC3202; Client-Server API, "Extensions to /sync" of device management.
        """
        lists, counts, fallback = _NAMES[profile]
        parts: list[tuple[str, object]] = []
        if self.lists:
            parts += [(name, _lists(self.lists)) for name in lists]
        if told := _by_device((k.user_id, k.device_id, _with_zero(k.counts)) for k in self.keys):
            parts += [(name, told) for name in counts]
        if told := _by_device((k.user_id, k.device_id, k.fallback_types) for k in self.keys):
            parts += [(name, told) for name in fallback]
        return b"".join(b',"%s":%s' % (name.encode(), _json(value)) for name, value in parts)


def _lists(updates: Iterable[DeviceListUpdate]) -> dict[str, list[str]]:
    told: dict[str, list[str]] = {"changed": [], "left": []}
    for update in updates:
        told[update.change].append(update.user_id)
    return told


def _with_zero(counts: Mapping[str, int] | None) -> Mapping[str, int] | None:
    return None if counts is None else {_ALWAYS_COUNTED: 0} | dict(counts)


def _by_device(rows: Iterable[tuple[str, str, object]]) -> dict[str, dict[str, object]]:
    told: dict[str, dict[str, object]] = {}
    for user_id, device_id, value in rows:
        if value is not None:
            told.setdefault(user_id, {})[device_id] = value
    return told


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
