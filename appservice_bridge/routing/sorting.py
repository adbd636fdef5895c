"""Captured rows to items: what is in a row, whose it is, and what can never be delivered."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from appservice_bridge.domain.owners import Owners
from appservice_bridge.domain.raw_json import MalformedError, decode, elements, members, string
from appservice_bridge.domain.transaction import Kind
from appservice_bridge.storage.intake import Buried, Captured, Routed

InboxKey: TypeAlias = tuple[str, str, int]
EventKey: TypeAlias = tuple[str, bytes]

_EPHEMERAL_FIELDS: Final = ("ephemeral", "de.sorunome.msc2409.ephemeral")

# What Synapse adds with its experimental flags on. It carries no stream id, so it cannot be told
# from what the triggers captured; that is delivered, and this is dropped and counted.
_NATIVE_FIELDS: Final = {
    "to_device": "to_device",
    "de.sorunome.msc2409.to_device": "to_device",
    "device_lists": "device_lists",
    "org.matrix.msc3202.device_lists": "device_lists",
    "device_one_time_keys_count": "key_counts",
    "org.matrix.msc3202.device_one_time_keys_count": "key_counts",
    "org.matrix.msc3202.device_one_time_key_counts": "key_counts",
    "device_unused_fallback_key_types": "fallback_types",
    "org.matrix.msc3202.device_unused_fallback_key_types": "fallback_types",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What becomes of one fact, if it is new.

    Attributes:
        key: tells a repeat; None where nothing can, and then every copy is new.
        routed: one item per interested appservice.
        buried: the same, where it cannot be delivered.
    """

    key: InboxKey | EventKey | None = None
    routed: tuple[Routed, ...] = ()
    buried: tuple[Buried, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sorted:
    """All that a batch of the log holds, in its order."""

    candidates: list[Candidate] = field(default_factory=list)
    foreign: set[str] = field(default_factory=set)
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def inbox_keys(self) -> list[InboxKey]:
        """Keys of the to-device messages."""
        return [c.key for c in self.candidates if c.key is not None and len(c.key) == 3]

    def event_keys(self) -> list[EventKey]:
        """Keys of the room events."""
        return [c.key for c in self.candidates if c.key is not None and len(c.key) == 2]

    def only_new(self, fresh: set[InboxKey | EventKey]) -> list[Candidate]:
        """The candidates that are no repeats, of those before or of each other; counts the rest."""
        left = set(fresh)
        new = []
        for candidate in self.candidates:
            if candidate.key is None or candidate.key in left:
                new.append(candidate)
                left.discard(candidate.key)
            else:
                for item in candidate.routed:
                    self.counts[item.appservice_id, item.kind, "repeated"] += 1
        return new


def sort_rows(rows: Iterable[Captured], owners: Owners) -> Sorted:
    """Take a batch of the log apart."""
    found = Sorted()
    for row in rows:
        if row.kind == "to_device":
            _sort_to_device(row, owners, found)
        elif row.kind == "transaction":
            _sort_transaction(row, owners, found)
        else:
            reason = "a kind of fact that this release does not know"
            found.candidates.append(_grave(row, row.kind, reason, row.body))
    return found


def _sort_to_device(row: Captured, owners: Owners, found: Sorted) -> None:
    if row.user_id is None or row.device_id is None or row.stream_id is None:
        raise LookupError("a captured to-device message has no key")
    appservice_ids = owners.of(row.user_id)
    if not appservice_ids:
        found.foreign.add(row.user_id)
        found.counts["", Kind.TO_DEVICE, "foreign"] += 1
        return
    key = (row.user_id, row.device_id, row.stream_id)
    try:
        payload = to_device_item(row.user_id, row.device_id, row.body)
    except MalformedError as error:
        found.candidates.append(Candidate(key=key, buried=_unfit(row, appservice_ids, str(error))))
        return
    routed = tuple(
        Routed(
            appservice_id=appservice_id,
            kind=Kind.TO_DEVICE,
            captured_at=row.captured_at,
            payload=payload,
            user_id=row.user_id,
            device_id=row.device_id,
            stream_id=row.stream_id,
        )
        for appservice_id in appservice_ids
    )
    found.candidates.append(Candidate(key=key, routed=routed))


def _unfit(row: Captured, appservice_ids: Sequence[str], reason: str) -> tuple[Buried, ...]:
    return tuple(
        Buried(
            appservice_id=appservice_id,
            kind=Kind.TO_DEVICE,
            reason=reason,
            payload=row.body,
            user_id=row.user_id,
            device_id=row.device_id,
            stream_id=row.stream_id,
        )
        for appservice_id in appservice_ids
    )


def to_device_item(user_id: str, device_id: str, message_json: bytes) -> bytes:
    """The flat entry of MSC4203: recipient, then type, sender and content as they were stored.

    Raises:
        MalformedError: a client library would choke on it, and drop its neighbours with it.
    """
    message = members(decode(message_json))
    for name in ("type", "sender"):
        string(message.get(name, ""))
    if not message.get("content", "").startswith("{"):
        raise MalformedError("content is not an object")
    recipient = f'"to_user_id":{_quoted(user_id)},"to_device_id":{_quoted(device_id)}'
    kept = ",".join(f'"{name}":{message[name]}' for name in ("type", "sender", "content"))
    return f"{{{recipient},{kept}}}".encode()


def _sort_transaction(row: Captured, owners: Owners, found: Sorted) -> None:
    appservice_id = row.appservice_id
    if appservice_id is None:
        raise LookupError("a relayed transaction has no appservice")
    if appservice_id not in owners.registrations:
        found.counts[appservice_id, "transaction", "no_transport"] += 1
        return
    try:
        body = members(decode(row.body))
    except MalformedError as error:
        found.candidates.append(_grave(row, "transaction", str(error), row.body))
        return
    for raw in _entries(row, "event", body.get("events", "[]"), found):
        found.candidates.append(_event(row, raw))
    field_name = next((name for name in _EPHEMERAL_FIELDS if name in body), None)
    if field_name is not None:
        for raw in _entries(row, "ephemeral", body[field_name], found):
            found.candidates.append(_ephemeral(row, raw))
    _count_native(appservice_id, body, found)


def _entries(row: Captured, kind: str, array: str, found: Sorted) -> list[str]:
    try:
        return elements(array)
    except MalformedError as error:
        found.candidates.append(_grave(row, kind, str(error), array.encode()))
        return []


def _event(row: Captured, raw: str) -> Candidate:
    try:
        event_id = members(raw).get("event_id")
        key = None if event_id is None else _event_key(row, string(event_id))
    except MalformedError as error:
        return _grave(row, Kind.EVENT, str(error), raw.encode())
    return Candidate(key=key, routed=(_routed(row, Kind.EVENT, raw),))


def _event_key(row: Captured, event_id: str) -> EventKey:
    digest = hashlib.sha256(event_id.encode(errors="surrogatepass")).digest()
    return (str(row.appservice_id), digest)


def _ephemeral(row: Captured, raw: str) -> Candidate:
    if not raw.startswith("{"):
        return _grave(row, Kind.EPHEMERAL, "not an object", raw.encode())
    return Candidate(routed=(_routed(row, Kind.EPHEMERAL, raw),))


def _routed(row: Captured, kind: Kind, raw: str) -> Routed:
    return Routed(
        appservice_id=str(row.appservice_id),
        kind=kind,
        captured_at=row.captured_at,
        payload=raw.encode(),
    )


def _grave(row: Captured, kind: str, reason: str, payload: bytes) -> Candidate:
    item = Buried(appservice_id=row.appservice_id or "", kind=kind, reason=reason, payload=payload)
    return Candidate(buried=(item,))


def _count_native(appservice_id: str, body: dict[str, str], found: Sorted) -> None:
    for name, kind in _NATIVE_FIELDS.items():
        if body.get(name, "[]") not in ("[]", "{}", "null"):
            found.counts[appservice_id, kind, "native_dropped"] += 1


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
