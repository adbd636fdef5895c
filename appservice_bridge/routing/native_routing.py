"""What a homeserver's own transaction tells of devices: taken as facts, or dropped and counted."""

from collections.abc import Mapping

from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.domain.owners import Owners
from appservice_bridge.domain.raw_json import MalformedError
from appservice_bridge.domain.to_device import to_device_item
from appservice_bridge.domain.transaction import Kind
from appservice_bridge.routing.candidates import Candidate, Routing, part_key
from appservice_bridge.routing.native_fields import FIELDS, Message, read_native, told_fields
from appservice_bridge.storage.capture_log import Captured, CapturedKind
from appservice_bridge.storage.device_updates import ListKey
from appservice_bridge.storage.ledger import LedgerKey
from appservice_bridge.storage.outbox import Routed


def count_native(appservice_id: str, body: Mapping[str, str], routing: Routing) -> None:
    """Drop what Synapse adds with its experimental flags on.

    It carries no stream id, so it cannot be told from what the triggers captured, and that is
    delivered.
    """
    for name in told_fields(body):
        routing.counts[LedgerKey(appservice_id, FIELDS[name], LedgerOutcome.NATIVE_DROPPED)] += 1


def route_native(
    row: Captured,
    appservice_id: str,
    body: Mapping[str, str],
    owners: Owners,
    routing: Routing,
) -> None:
    """Take what the transaction tells of devices, for the appservice that it is for.

    It comes before the events of the same transaction: a room key before what it opens.
    """
    facts = read_native(body)
    for each in facts.malformed:
        routing.bury_whole(row, each.kind, each.reason, each.raw.encode())
    for message in facts.messages:
        if _wanted(row, message.user_id, Kind.TO_DEVICE, owners, routing):
            _route_message(row, appservice_id, message, routing)
    for user_id, device_id, change in facts.keys:
        if _wanted(row, user_id, CapturedKind.DEVICE_KEYS, owners, routing):
            routing.devices.change_keys([appservice_id], user_id, device_id, change)
    if owners.takes_encryption(appservice_id):
        for user_id, listed in facts.lists.items():
            routing.devices.lists[ListKey(appservice_id, user_id)] = listed


def _wanted(row: Captured, user_id: str, kind: str, owners: Owners, routing: Routing) -> bool:
    """Whether the appservice that a transaction is for takes what is a user's; counts if not."""
    wanted = row.appservice_id in owners.of(user_id)
    if not wanted:
        routing.counts[LedgerKey(str(row.appservice_id), kind, LedgerOutcome.FOREIGN)] += 1
    return wanted


def _route_message(row: Captured, appservice_id: str, message: Message, routing: Routing) -> None:
    try:
        payload = to_device_item(message.user_id, message.device_id, message.raw.encode())
    except MalformedError as error:
        routing.bury_whole(row, Kind.TO_DEVICE, str(error), message.raw.encode())
        return
    item = Routed(
        appservice_id=appservice_id,
        kind=Kind.TO_DEVICE,
        captured_at=row.captured_at,
        payload=payload,
        user_id=message.user_id,
        device_id=message.device_id,
    )
    key = part_key(row, "to_device", message.number, message.like)
    routing.candidates.append(Candidate(key=key, routed=(item,)))
