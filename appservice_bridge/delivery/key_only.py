"""Messages of which only the key waits: their payload is read where the homeserver left it."""

from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.domain.raw_json import MalformedError
from appservice_bridge.domain.to_device import to_device_item
from appservice_bridge.domain.transaction import Item, Kind
from appservice_bridge.storage import dead_letters, inbox, ledger, outbox
from appservice_bridge.storage.database import (
    Connection,
    DatabaseUnavailableError,
    SourceUnreadableError,
    reading_synapse,
)
from appservice_bridge.storage.dead_letters import Buried
from appservice_bridge.storage.ledger import LedgerKey
from appservice_bridge.storage.repeats import InboxKey

log = structlog.get_logger(__name__)

GONE: Final = "the homeserver no longer holds it, and there was no room to keep it"


async def filled(
    conn: Connection, appservice_id: str, items: Sequence[Item], *, max_bytes: int
) -> Sequence[Item]:
    """The items with the payloads that were left in the homeserver's inbox, as far as they fit.

    They are written into the outbox in the DB transaction that seals them, so that a retry finds
    the same bytes; dying before its commit leaves the keys as they were. What the homeserver
    does not hold any more is buried, and is dropped from the outbox.

    Raises:
        DatabaseUnavailableError: the inbox cannot be read as it is now.
    """
    bare = [item.position for item in items if item.kind is Kind.TO_DEVICE and not item.payload]
    if not bare:
        return items
    keys = await outbox.inbox_keys(conn, appservice_id, bare)
    bodies = await _bodies(conn, [keys[one] for one in bare], max_bytes=max_bytes)
    looked_at = dict(zip(bare, bodies, strict=False))
    payloads, dead = _flattened(appservice_id, keys, looked_at)
    if payloads:
        await outbox.fill(conn, appservice_id, payloads)
    if dead:
        await _bury(conn, appservice_id, dead)
    unread = set(bare) - looked_at.keys()
    return [
        _as_sealed(item, payloads, dead)
        for item in items
        if not unread or item.position < min(unread)
    ]


async def _bodies(
    conn: Connection, keys: Sequence[InboxKey], *, max_bytes: int
) -> list[bytes | None]:
    try:
        with reading_synapse():
            return await inbox.bodies(conn, keys, max_bytes=max_bytes)
    except SourceUnreadableError as error:
        raise DatabaseUnavailableError(error.reason) from None  # the lane waits; others go on


def _flattened(
    appservice_id: str, keys: Mapping[int, InboxKey], bodies: Mapping[int, bytes | None]
) -> tuple[dict[int, bytes], dict[int, Buried]]:
    """What can be sent, and what never can, by position."""
    payloads: dict[int, bytes] = {}
    dead: dict[int, Buried] = {}
    for position, body in bodies.items():
        key, reason = keys[position], GONE
        try:
            if body is not None:
                payloads[position] = to_device_item(key.user_id, key.device_id, body)
                continue
        except MalformedError as error:
            reason = str(error)
        dead[position] = Buried(
            appservice_id=appservice_id,
            kind=Kind.TO_DEVICE,
            reason=reason,
            payload=body,
            user_id=key.user_id,
            device_id=key.device_id,
            stream_id=key.stream_id,
        )
    return payloads, dead


async def _bury(conn: Connection, appservice_id: str, dead: Mapping[int, Buried]) -> None:
    await outbox.drop(conn, appservice_id, list(dead))
    await dead_letters.bury(conn, list(dead.values()))
    await ledger.count(
        conn, {LedgerKey(appservice_id, Kind.TO_DEVICE, LedgerOutcome.BURIED): len(dead)}
    )
    log.error("seal.buried", appservice=appservice_id, messages=len(dead))


def _as_sealed(item: Item, payloads: Mapping[int, bytes], dead: Mapping[int, Buried]) -> Item:
    if item.position in dead:
        return Item(position=item.position, kind=Kind.DROPPED, payload=b"")
    payload = payloads.get(item.position, item.payload)
    return item._replace(payload=payload)
