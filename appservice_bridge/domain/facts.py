"""Facts as a homeserver hands them over: sound ones become rows of the log, others are refused."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.raw_json import MAX_CONTENT_BYTES

MAX_EVENT_BYTES: Final = 4 * 65_536
"""Of a whole event: content, and what the homeserver adds in `unsigned`."""
MAX_ID_BYTES: Final = 255
MAX_LISTED_USERS: Final = 10_000
"""Of one device_list, changed and left together."""
LARGEST_INTEGER: Final = 2**53 - 1

Canonical: TypeAlias = Callable[[object], bytes]

# Localparts of old users hold anything but a colon and U+0000, also nothing.
_USER_ID: Final = re.compile(
    r"@[^:\0]*:(?:[0-9A-Za-z.-]+|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?", re.DOTALL
)
_TEXT: Final = re.compile(r"[^\0\ud800-\udfff]*", re.DOTALL)


class RefusedFactError(BridgeError):
    """A fact cannot be taken, and never will be; its neighbours can.

    Attributes:
        errcode: as Matrix names it.
        message: says which key, and never what is in it.
    """

    def __init__(self, errcode: str, message: str) -> None:
        super().__init__(message)
        self.errcode = errcode
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the capture log, less its number; see there for what the kinds hold."""

    kind: str
    appservice_id: str | None = None
    user_id: str | None = None
    device_id: str | None = None
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One sound fact.

    Attributes:
        rows: in order; one, but for a device_list of several users.
        owner_of: the local user whose appservices it is for; None: it names the appservice.
        appservice_id: the one it is for; None: those that own the user.
        of_devices: only an appservice with encryption takes it.
    """

    rows: tuple[Row, ...]
    owner_of: str | None = None
    appservice_id: str | None = None
    of_devices: bool = False


def read_fact(value: object, canonical: Canonical) -> Fact:
    """What one member of a batch says.

    Args:
        value: as JSON was read; its nesting is bounded by who read it.
        canonical: bytes of canonical JSON, for what holds only what canonical JSON may.

    Raises:
        RefusedFactError: it is not as docs/ingest.md wants it.
    """
    if not isinstance(value, dict):
        raise RefusedFactError("M_BAD_JSON", "a fact must be an object")
    kind = value.get("kind")
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise RefusedFactError("M_INVALID_PARAM", f"kind must be one of {', '.join(_READERS)}")
    _require_canonical(value)
    return reader(value, canonical)


def known_kind(value: object) -> str:
    """The kind that a fact gives itself; `unknown` if there is none such."""
    kind = value.get("kind") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) and kind in _READERS else "unknown"


def _to_device(fact: Mapping[str, object], canonical: Canonical) -> Fact:
    user_id, device_id = _user_id(fact, "to_user_id"), _device_id(fact, "to_device_id")
    kept = {"sender": _user_id(fact, "sender"), "type": _text(fact, "type")}
    content = _content(fact, canonical)
    body = b'{"content":' + content + b"," + canonical(kept)[1:]
    row = Row(kind="to_device", user_id=user_id, device_id=device_id, body=body)
    return Fact(rows=(row,), owner_of=user_id)


def _device_list(fact: Mapping[str, object], _canonical: Canonical) -> Fact:
    appservice_id = _text(fact, "appservice_id")
    lists = {name: _strings(fact, name, most=MAX_LISTED_USERS) for name in ("changed", "left")}
    if sum(map(len, lists.values())) > MAX_LISTED_USERS:
        raise RefusedFactError("M_TOO_LARGE", f"more than {MAX_LISTED_USERS} users")
    for name, user_ids in lists.items():
        for user_id in user_ids:
            _require_user_id(user_id, name)
    # Whoever is in both is there again: changed is the later state.
    changes = dict.fromkeys(lists["left"], b"left") | dict.fromkeys(lists["changed"], b"changed")
    rows = (
        Row(kind="device_list", appservice_id=appservice_id, user_id=user_id, body=change)
        for user_id, change in changes.items()
    )
    return Fact(rows=tuple(rows), appservice_id=appservice_id, of_devices=True)


def _one_time_key_counts(fact: Mapping[str, object], canonical: Canonical) -> Fact:
    counts = fact.get("counts")
    if not isinstance(counts, dict):
        raise RefusedFactError("M_BAD_JSON", "counts must be an object")
    for algorithm, count in counts.items():
        _require_text(algorithm, "counts")
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise RefusedFactError("M_BAD_JSON", "counts must hold integers, none below zero")
    return _device_keys(fact, canonical({"one_time_key_counts": counts}))


def _unused_fallback_key_types(fact: Mapping[str, object], canonical: Canonical) -> Fact:
    if "types" not in fact:
        raise RefusedFactError("M_BAD_JSON", "types must be an array of strings")
    types = list(dict.fromkeys(_strings(fact, "types", most=100)))
    for one in types:
        _require_text(one, "types")
    return _device_keys(fact, canonical({"unused_fallback_key_types": types}))


def _device_keys(fact: Mapping[str, object], body: bytes) -> Fact:
    user_id, device_id = _user_id(fact, "user_id"), _device_id(fact, "device_id")
    row = Row(kind="device_keys", user_id=user_id, device_id=device_id, body=body)
    return Fact(rows=(row,), owner_of=user_id)


def _device_deleted(fact: Mapping[str, object], _canonical: Canonical) -> Fact:
    user_id, device_id = _user_id(fact, "user_id"), _device_id(fact, "device_id")
    row = Row(kind="device_deleted", user_id=user_id, device_id=device_id)
    return Fact(rows=(row,), owner_of=user_id)


def _room_event(fact: Mapping[str, object], canonical: Canonical) -> Fact:
    return _event(fact, "event", ("event_id", "type"), canonical)


def _ephemeral(fact: Mapping[str, object], canonical: Canonical) -> Fact:
    return _event(fact, "ephemeral", ("type",), canonical)


def _event(
    fact: Mapping[str, object], kind: str, names: Sequence[str], canonical: Canonical
) -> Fact:
    appservice_id = _text(fact, "appservice_id")
    event = fact.get("event")
    if not isinstance(event, dict):
        raise RefusedFactError("M_BAD_JSON", "event must be an object")
    for name in names:
        _text(event, name)
    _content(event, canonical)
    body = canonical(event)
    if len(body) > MAX_EVENT_BYTES:
        raise RefusedFactError("M_TOO_LARGE", f"event is over {MAX_EVENT_BYTES} bytes")
    row = Row(kind=kind, appservice_id=appservice_id, body=body)
    return Fact(rows=(row,), appservice_id=appservice_id)


_READERS: Final[Mapping[str, Callable[[Mapping[str, object], Canonical], Fact]]] = {
    "to_device": _to_device,
    "device_list": _device_list,
    "one_time_key_counts": _one_time_key_counts,
    "unused_fallback_key_types": _unused_fallback_key_types,
    "device_deleted": _device_deleted,
    "room_event": _room_event,
    "ephemeral": _ephemeral,
}


def _content(of: Mapping[str, object], canonical: Canonical) -> bytes:
    content = of.get("content")
    if not isinstance(content, dict):
        raise RefusedFactError("M_BAD_JSON", "content must be an object")
    found = canonical(content)
    if len(found) > MAX_CONTENT_BYTES:
        message = f"content is over {MAX_CONTENT_BYTES} bytes of canonical JSON"
        raise RefusedFactError("M_TOO_LARGE", message)
    return found


def is_user_id(text: str) -> bool:
    """Whether it is well-formed, and fits wherever ids are kept."""
    return is_text(text) and _USER_ID.fullmatch(text) is not None


def is_text(text: str) -> bool:
    """Whether it is good as an id, a type or an algorithm: 1 to 255 bytes, without U+0000."""
    return _TEXT.fullmatch(text) is not None and 0 < len(text.encode()) <= MAX_ID_BYTES


def _user_id(fact: Mapping[str, object], name: str) -> str:
    user_id = _text(fact, name)
    _require_user_id(user_id, name)
    return user_id


def _require_user_id(user_id: str, name: str) -> None:
    if not is_user_id(user_id):
        raise RefusedFactError("M_INVALID_PARAM", f"{name} must hold a user id")


def _device_id(fact: Mapping[str, object], name: str) -> str:
    device_id = _text(fact, name)
    if device_id == "*":
        message = f"{name} must be one device: which there are, only the homeserver knows"
        raise RefusedFactError("M_INVALID_PARAM", message)
    return device_id


def _text(fact: Mapping[str, object], name: str) -> str:
    value = fact.get(name)
    if not isinstance(value, str):
        raise RefusedFactError("M_BAD_JSON", f"{name} must be a string")
    _require_text(value, name)
    return value


def _require_text(value: str, name: str) -> None:
    if not is_text(value):
        message = f"{name} must be of 1 to {MAX_ID_BYTES} bytes"
        raise RefusedFactError("M_INVALID_PARAM", message)


def _strings(fact: Mapping[str, object], name: str, *, most: int) -> list[str]:
    found = fact.get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise RefusedFactError("M_BAD_JSON", f"{name} must be an array of strings")
    if len(found) > most:
        raise RefusedFactError("M_TOO_LARGE", f"{name} holds more than {most}")
    return found


def _require_canonical(fact: object) -> None:
    """See that it holds only what canonical JSON may, and no U+0000.

    Raises:
        RefusedFactError: it does not.
    """
    for value in _values(fact):
        match value:
            case bool():
                pass
            case float():
                raise RefusedFactError("M_BAD_JSON", "numbers must be integers")
            case int() if abs(value) > LARGEST_INTEGER:
                raise RefusedFactError("M_BAD_JSON", "an integer is beyond 2^53-1")
            case str() if not _TEXT.fullmatch(value):
                raise RefusedFactError("M_BAD_JSON", "a string holds U+0000 or a lone surrogate")


def _values(whole: object) -> Iterator[object]:
    """Every value and key in it, without recursion."""
    left = [whole]
    while left:
        value = left.pop()
        yield value
        if isinstance(value, dict):
            left.extend(value)
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
