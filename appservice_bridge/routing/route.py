"""Captured rows to items: what is in a row, whose it is, and what can never be delivered."""

import hashlib
from collections.abc import Container, Iterable, Sequence
from typing import Final

from appservice_bridge.domain.expiry import Fleeting
from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.domain.owners import Owners
from appservice_bridge.domain.raw_json import (
    MalformedError,
    decode,
    elements,
    members,
    require_small,
    string,
)
from appservice_bridge.domain.to_device import to_device_item
from appservice_bridge.domain.transaction import Kind
from appservice_bridge.routing.candidates import Candidate, KeyMissingError, Routing
from appservice_bridge.routing.device_changes import key_change, list_change, signatures
from appservice_bridge.routing.native_routing import count_native, route_native
from appservice_bridge.storage.capture_log import Captured, CapturedKind
from appservice_bridge.storage.dead_letters import Buried
from appservice_bridge.storage.deleted_devices import DeletedInbox
from appservice_bridge.storage.device_updates import DeviceKey
from appservice_bridge.storage.ledger import LedgerKey
from appservice_bridge.storage.outbox import Routed
from appservice_bridge.storage.repeats import EventKey, InboxKey

MOST_ENTRIES: Final = 10_000
"""Of one kind in one transaction of the homeserver; Synapse sends a hundred at most."""

_FLEETING: Final = {f'"{type_}"': type_ for type_ in Fleeting}  # as it is written in JSON
_EPHEMERAL_FIELDS: Final = ("ephemeral", "de.sorunome.msc2409.ephemeral")


def route_rows(rows: Iterable[Captured], owners: Owners, withdrawn: Container[str] = ()) -> Routing:
    """What becomes of each row of a batch.

    What came for an appservice that is `withdrawn` since goes where the rest of it waits.

    Raises:
        KeyMissingError: a row lacks what its kind has.
    """
    routing = Routing(withdrawn)
    for row in rows:
        match row.kind:
            case CapturedKind.TO_DEVICE:
                _route_to_device(row, owners, routing)
            case CapturedKind.TRANSACTION:
                _route_transaction(row, owners, routing)
            case (
                CapturedKind.DEVICE_LIST
                | CapturedKind.SIGNATURES
                | CapturedKind.DEVICE_KEYS
                | CapturedKind.DEVICE_DELETED
                | CapturedKind.INBOX_DELETED
            ):
                _route_device_change(row, owners, routing)
            case CapturedKind.EVENT | CapturedKind.EPHEMERAL:
                _route_addressed(row, owners, routing)
            case unknown:
                reason = "a kind of fact that this release does not know"
                routing.bury_whole(row, unknown, reason, row.body)
    return routing


def _route_to_device(row: Captured, owners: Owners, routing: Routing) -> None:
    if row.user_id is None or row.device_id is None:
        raise KeyMissingError(row)
    appservice_ids = _owning(row, row.user_id, owners, routing)
    if not appservice_ids:
        return
    key = None
    if row.stream_id is not None:  # by ingest it comes without one
        key = InboxKey(row.user_id, row.device_id, row.stream_id)
    try:
        payload = _item_or_key(row, row.user_id, row.device_id)
    except MalformedError as error:
        routing.candidates.append(
            Candidate(key=key, buried=_buried_for_each(row, appservice_ids, str(error)))
        )
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
    routing.candidates.append(Candidate(key=key, routed=routed))


def _owning(row: Captured, user_id: str, owners: Owners, routing: Routing) -> tuple[str, ...]:
    """Whose the user is; one whom nobody owns is put down as foreign."""
    appservice_ids = owners.of(user_id)
    if not appservice_ids:
        routing.foreign.add(user_id)
        routing.counts[LedgerKey("", row.kind, LedgerOutcome.FOREIGN)] += 1
    return appservice_ids


def _route_device_change(row: Captured, owners: Owners, routing: Routing) -> None:
    if row.user_id is None:
        raise KeyMissingError(row)
    if row.appservice_id is not None and not owners.takes_encryption(row.appservice_id):
        known = row.appservice_id in owners.registrations
        outcome = LedgerOutcome.NO_ENCRYPTION if known else LedgerOutcome.NO_TRANSPORT
        routing.counts[LedgerKey(row.appservice_id, row.kind, outcome)] += 1
        return
    try:
        if row.kind == CapturedKind.DEVICE_LIST:
            list_change(row, row.user_id, routing.devices)
        elif appservice_ids := _owning(row, row.user_id, owners, routing):
            _route_change_of_owned(row, row.user_id, appservice_ids, owners, routing)
    except MalformedError as error:
        routing.bury_whole(row, row.kind, str(error), row.body)


def _route_change_of_owned(
    row: Captured,
    user_id: str,
    appservice_ids: Sequence[str],
    owners: Owners,
    routing: Routing,
) -> None:
    if row.kind == CapturedKind.SIGNATURES:
        signatures(row, user_id, owners, routing.devices)
        return
    if row.device_id is None:
        raise KeyMissingError(row)
    if row.kind == CapturedKind.DEVICE_KEYS:
        routing.devices.change_keys(appservice_ids, user_id, row.device_id, key_change(row))
        return
    if row.kind == CapturedKind.INBOX_DELETED:  # whoever has the name now has keys of its own
        routing.candidates.append(Candidate(emptied=_emptied(row, user_id, appservice_ids)))
        return
    deleted = tuple(DeviceKey(id_, user_id, row.device_id) for id_ in appservice_ids)
    routing.devices.forget_keys(deleted)
    routing.candidates.append(Candidate(deleted=deleted))


def _emptied(
    row: Captured, user_id: str, appservice_ids: Sequence[str]
) -> tuple[DeletedInbox, ...]:
    if row.device_id is None or row.stream_id is None:
        raise KeyMissingError(row)
    place = (user_id, row.device_id, row.stream_id)
    return tuple(DeletedInbox(id_, *place) for id_ in appservice_ids)


def _route_addressed(row: Captured, owners: Owners, routing: Routing) -> None:
    """One event for one appservice."""
    if row.appservice_id is None:
        raise KeyMissingError(row)
    if not _has_outbox(row.appservice_id, owners, routing):
        routing.counts[LedgerKey(row.appservice_id, row.kind, LedgerOutcome.NO_TRANSPORT)] += 1
        return
    route = _route_event if row.kind == CapturedKind.EVENT else _route_ephemeral
    try:
        raw = decode(row.body)
    except MalformedError as error:
        routing.bury_whole(row, row.kind, str(error), row.body)
        return
    route(row, raw, routing)


def _has_outbox(appservice_id: str, owners: Owners, routing: Routing) -> bool:
    return appservice_id in owners.registrations or appservice_id in routing.withdrawn


def _item_or_key(row: Captured, user_id: str, device_id: str) -> bytes:
    """What is sent; nothing, where only the key is known: then a seal reads it in the inbox."""
    if not row.body and row.stream_id is not None:
        return b""
    return to_device_item(user_id, device_id, row.body)


def _buried_for_each(
    row: Captured, appservice_ids: Sequence[str], reason: str
) -> tuple[Buried, ...]:
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


def _route_transaction(row: Captured, owners: Owners, routing: Routing) -> None:
    appservice_id = row.appservice_id
    if appservice_id is None:
        raise KeyMissingError(row)
    if not _has_outbox(appservice_id, owners, routing):
        routing.counts[LedgerKey(appservice_id, row.kind, LedgerOutcome.NO_TRANSPORT)] += 1
        return
    try:
        body = members(decode(row.body), any_depth=True)
    except MalformedError as error:
        routing.bury_whole(row, row.kind, str(error), row.body)
        return
    if owners.native_fields:
        route_native(row, appservice_id, body, owners, routing)
    else:
        count_native(appservice_id, body, routing)
    for raw in _entries(row, "event", body.get("events", "[]"), routing):
        _route_event(row, raw, routing)
    field_name = next((name for name in _EPHEMERAL_FIELDS if name in body), None)
    if field_name is not None:
        for raw in _entries(row, "ephemeral", body[field_name], routing):
            _route_ephemeral(row, raw, routing)


def _entries(row: Captured, kind: str, array: str, routing: Routing) -> list[str]:
    try:
        return elements(array, most=MOST_ENTRIES)
    except MalformedError as error:
        routing.bury_whole(row, kind, str(error), array.encode())
        return []


def _route_event(row: Captured, raw: str, routing: Routing) -> None:
    try:
        event = members(raw)
        event_id = event.get("event_id")
        key = None if event_id is None else _event_key(row, string(event_id))
        require_small(event.get("content", "{}"))
    except MalformedError as error:
        routing.bury_whole(row, Kind.EVENT, str(error), raw.encode())
        return
    routing.candidates.append(Candidate(key=key, routed=(_routed(row, Kind.EVENT, raw),)))


def _event_key(row: Captured, event_id: str) -> EventKey:
    digest = hashlib.sha256(event_id.encode(errors="surrogatepass")).digest()
    return EventKey(str(row.appservice_id), digest)


def _route_ephemeral(row: Captured, raw: str, routing: Routing) -> None:
    try:
        type_ = members(raw).get("type")
    except MalformedError as error:
        routing.bury_whole(row, Kind.EPHEMERAL, str(error), raw.encode())
        return
    fleeting = _FLEETING.get(type_) if type_ is not None else None
    routing.candidates.append(Candidate(routed=(_routed(row, Kind.EPHEMERAL, raw, fleeting),)))


def _routed(row: Captured, kind: Kind, raw: str, fleeting: Fleeting | None = None) -> Routed:
    return Routed(
        appservice_id=str(row.appservice_id),
        kind=kind,
        captured_at=row.captured_at,
        payload=raw.encode(),
        fleeting=fleeting,
    )
