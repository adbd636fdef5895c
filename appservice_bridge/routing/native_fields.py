"""What a homeserver's own transaction tells of devices, under whichever names."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from appservice_bridge.domain.facts import is_text, is_user_id
from appservice_bridge.domain.raw_json import MalformedError, elements, likeness, members, string
from appservice_bridge.routing.device_changes import fallback_types, key_counts
from appservice_bridge.storage.capture_log import CapturedKind
from appservice_bridge.storage.device_updates import KeyChange

# Under the later name stands what holds, if both are there: the names of the specification.
TO_DEVICE_FIELDS: Final = ("de.sorunome.msc2409.to_device", "to_device")
LIST_FIELDS: Final = ("org.matrix.msc3202.device_lists", "device_lists")
COUNT_FIELDS: Final = (
    "org.matrix.msc3202.device_one_time_key_counts",
    "org.matrix.msc3202.device_one_time_keys_count",
    "device_one_time_keys_count",
)
TYPE_FIELDS: Final = (
    "org.matrix.msc3202.device_unused_fallback_key_types",
    "device_unused_fallback_key_types",
)
FIELDS: Final[Mapping[str, str]] = (
    dict.fromkeys(TO_DEVICE_FIELDS, "to_device")
    | dict.fromkeys(LIST_FIELDS, "device_lists")
    | dict.fromkeys(COUNT_FIELDS, "key_counts")
    | dict.fromkeys(TYPE_FIELDS, "fallback_types")
)

MOST_LISTED: Final = 100_000
"""Messages, or users, in one field of one transaction."""

_NO_SPACE: Final = str.maketrans("", "", " \t\n\r")


class Message(NamedTuple):
    """A to-device message as it was written.

    Attributes:
        like: the same for all that say the same, however they are written.
        number: among those of this transaction that say the same, from 1.
    """

    user_id: str
    device_id: str
    raw: str
    like: str
    number: int


class Malformed(NamedTuple):
    """A member that cannot be taken, as it was written."""

    kind: str
    reason: str
    raw: str


@dataclass(slots=True, kw_only=True)
class NativeFacts:
    """What the transaction tells; filled field by field.

    Attributes:
        lists: by user, `changed` or `left`.
        keys: by user and device.
    """

    messages: list[Message] = field(default_factory=list)
    lists: dict[str, str] = field(default_factory=dict)
    keys: list[tuple[str, str, KeyChange]] = field(default_factory=list)
    malformed: list[Malformed] = field(default_factory=list)


def told_fields(body: Mapping[str, str]) -> list[str]:
    """The fields among the transaction's members that tell anything."""
    empty = ("[]", "{}", "null")
    return [name for name in FIELDS if body.get(name, "[]").translate(_NO_SPACE) not in empty]


def read_native(body: Mapping[str, str]) -> NativeFacts:
    """Take the fields apart; what is malformed costs itself, and its neighbours go on."""
    facts = NativeFacts()
    told = told_fields(body)
    _read_messages([body[name] for name in TO_DEVICE_FIELDS if name in told], facts)
    for name in LIST_FIELDS:
        if name in told:
            _read_lists(body[name], facts)
    for names, change in ((COUNT_FIELDS, _counts), (TYPE_FIELDS, _types)):
        for name in names:
            if name in told:
                _read_keys(body[name], change, facts)
    return facts


def _read_messages(arrays: list[str], facts: NativeFacts) -> None:
    """One array, or both without what is in both of them."""
    taken: Counter[str] = Counter()
    for array in arrays:
        seen: Counter[str] = Counter()
        for raw in _parts(CapturedKind.TO_DEVICE, array, facts):
            like = likeness(raw)
            seen[like] += 1
            if seen[like] > taken[like]:
                _read_message(raw, like, seen[like], facts)
        taken |= seen


def _read_message(raw: str, like: str, number: int, facts: NativeFacts) -> None:
    try:
        message = members(raw)
        user_id = string(message.get("to_user_id", ""))
        device_id = string(message.get("to_device_id", ""))
        _require(is_user_id(user_id) and is_text(device_id), "it is for no user or no device")
    except MalformedError as error:
        facts.malformed.append(Malformed(CapturedKind.TO_DEVICE, str(error), raw))
        return
    facts.messages.append(Message(user_id, device_id, raw, like, number))


def _parts(kind: str, array: str, facts: NativeFacts) -> list[str]:
    try:
        return elements(array, most=MOST_LISTED)
    except MalformedError as error:
        facts.malformed.append(Malformed(kind, str(error), array))
        return []


def _read_lists(raw: str, facts: NativeFacts) -> None:
    for change in ("left", "changed"):  # who is in both is there again
        for user in _listed(raw, change, facts):
            try:
                user_id = string(user)
                _require(is_user_id(user_id), "no user id")
            except MalformedError as error:
                facts.malformed.append(Malformed(CapturedKind.DEVICE_LIST, str(error), user))
            else:
                facts.lists[user_id] = change


def _listed(raw: str, change: str, facts: NativeFacts) -> list[str]:
    try:
        array = members(raw).get(change, "[]")
    except MalformedError as error:
        if change == "changed":  # said once
            facts.malformed.append(Malformed(CapturedKind.DEVICE_LIST, str(error), raw))
        return []
    return [] if array == "null" else _parts(CapturedKind.DEVICE_LIST, array, facts)


def _read_keys(raw: str, change: Callable[[str], KeyChange], facts: NativeFacts) -> None:
    for user_id, devices in _objects(raw, facts):
        for device_id, told in _objects(devices, facts):
            try:
                _require(is_user_id(user_id) and is_text(device_id), "no user or no device")
                facts.keys.append((user_id, device_id, change(told)))
            except MalformedError as error:
                facts.malformed.append(Malformed(CapturedKind.DEVICE_KEYS, str(error), told))


def _objects(raw: str, facts: NativeFacts) -> Iterator[tuple[str, str]]:
    try:
        yield from members(raw, any_depth=True).items()
    except MalformedError as error:
        facts.malformed.append(Malformed(CapturedKind.DEVICE_KEYS, str(error), raw))


def _counts(raw: str) -> KeyChange:
    return KeyChange(recount=False, counts=key_counts(raw))


def _types(raw: str) -> KeyChange:
    return KeyChange(recount=False, fallback_types=fallback_types(raw))


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise MalformedError(otherwise)
