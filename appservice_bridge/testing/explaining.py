"""What a check that failed says beside what it missed: lane, attempts, outbox, logs. No payload."""

import time
from collections.abc import Iterator
from typing import Final

from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.storage import overview, owed, waiting
from appservice_bridge.testing.seen import KINDS, Seen
from appservice_bridge.testing.slots import Slot
from appservice_bridge.testing.stage import Stage
from appservice_bridge.testing.stand import Stand

ATTEMPTS: Final = 5
ITEMS: Final = 8


async def explained(stage: Stage, slot: Slot) -> str:
    """Several lines for a person; what cannot be read says so instead of failing."""
    stand = stage.stands.by_name[slot.name]
    try:
        lane = await _of_the_database(stage, slot.id)
    except (BridgeError, OSError) as error:
        lane = [f"the database could not be asked: {error}"]
    lines = [
        f"appservice {slot.id}",
        *lane,
        *_attempts(stand),
        *_not_expected(stand.seen),
        *(f"the handler raised:\n{error}" for error in stand.errors[-1:]),
        *(f"{name} has ended with code {code}" for name, code in stage.dead_parts().items()),
        "logs:",
        *(f"  {name:8}  {path}" for name, path in stage.logs().items()),
    ]
    return "\n".join(lines)


async def _of_the_database(stage: Stage, appservice_id: str) -> list[str]:
    conn = await stage.connect()
    try:
        lanes = await overview.lanes(conn)
        sealed = await owed.owed(conn, appservice_id)
        first = await waiting.head(conn, appservice_id, most=ITEMS)
        captured = await overview.captured(conn)
    finally:
        await conn.close()
    lane = next((one for one in lanes if one.appservice_id == appservice_id), None)
    return [
        "no lane" if lane is None else f"lane: {_lane(lane)}",
        *(f"facts captured and not routed yet: {captured}" for _ in range(captured > 0)),
        *(f"sealed: {one.txn_id}, {one.items} items, {one.body_bytes} bytes" for one in sealed),
        "head of the outbox:" if first else "the outbox is empty",
        *(f"  {_item(one)}" for one in first),
    ]


def _lane(lane: overview.LaneView) -> str:
    said = [
        lane.state,
        f"{lane.waiting} waiting",
        f"{lane.device_updates} device updates",
        f"{lane.delivered} delivered",
        f"{lane.dead_letters} dead letters",
    ]
    if lane.last_outcome is not None:
        said.append(f"last answer {lane.last_outcome} {lane.last_status or ''}".rstrip())
    if lane.failed_attempts:
        said.append(f"{lane.failed_attempts} attempts failed, rests {lane.rest_seconds:.1f} s")
    return ", ".join(said)


def _item(item: waiting.Waiting) -> str:
    whom = f" for {item.user_id} {item.device_id}" if item.user_id else ""
    sealed = ", sealed" if item.sealed else ""
    return (
        f"{item.position}  {item.kind}{whom}  {item.bytes} bytes, "
        f"for {item.waited_seconds:.1f} s{sealed}"
    )


def _attempts(stand: Stand) -> Iterator[str]:
    last = stand.seen.attempts[-ATTEMPTS:]
    yield f"last attempts of {len(stand.seen.attempts)}:" if last else "no attempt was made"
    now = time.monotonic()
    for attempt in last:
        yield "  " + attempt.told(now)
    if not stand.open.is_set():
        yield "attempts are held: release() lets them go on"


def _not_expected(seen: Seen) -> Iterator[str]:
    came = [
        f"  {kind} {item.get('type')} from {item.get('sender')}"
        for kind in KINDS
        for _, item in seen.unclaimed(kind)
    ]
    if came:
        yield "what came and was not expected:"
        yield from came[:ITEMS]
        if len(came) > ITEMS:
            yield f"  and {len(came) - ITEMS} more"
