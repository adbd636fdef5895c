"""Cuts the next transaction from an outbox and freezes it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from appservice_bridge.delivery import expiring, key_only
from appservice_bridge.delivery.building import build
from appservice_bridge.domain.device_updates import DeviceUpdates
from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.domain.policy import DeliveryPolicy
from appservice_bridge.domain.transaction import BUILDER, Item, Kind, within_limits
from appservice_bridge.storage import (
    attempts,
    deleted_devices,
    device_updates,
    kept,
    lanes,
    ledger,
    outbox,
    sealed,
)
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.lanes import LaneState
from appservice_bridge.storage.leases import Lease
from appservice_bridge.storage.ledger import LedgerKey
from appservice_bridge.storage.sealed import Sealed

MOST_SKIPPED: Final = 20_000  # positions, in one DB transaction: whoever wants the lane waits


async def owed(
    conn: Connection, lease: Lease, policy: DeliveryPolicy, state: LaneState
) -> Sealed | None:
    """The transaction in flight, else the next one, sealed now.

    None if nothing waits, the lane is paused, or so much that is not sent lay before it that it
    comes at the next look. One that is found with an attempt open may have been processed.

    Raises:
        LeaseLostError: someone else holds the lane.
        AlteredTransactionError: the one in flight is not what was sealed.
    """
    if state.paused:
        return None
    if state.in_flight:
        found = await sealed.in_flight(conn, lease)
        return await attempts.doubt(conn, lease, found) if found.attempt_open else found
    if state.split_asked:  # of what was in flight then, and is not any more
        await lanes.forget_split(conn, lease)
    return await _seal_next(conn, lease, _learnt(policy, state), state)


async def ack_and_seal_next(
    conn: Connection,
    lease: Lease,
    policy: DeliveryPolicy,
    taken: Sealed,
    *,
    status: int,
    seal: bool = True,
) -> Sealed | None:
    """Let go of what was taken and freeze what follows, in one DB transaction.

    Without `seal` nothing more is frozen: the lane is about to be handed back.

    Raises:
        LeaseLostError: someone else holds the lane.
    """
    if policy.keep_delivered_seconds:
        await kept.keep(conn, lease, number=taken.number)
    await sealed.ack(conn, lease, taken, status=status)
    state = await lanes.hold(conn, lease)
    if state.updates_cap is not None and not taken.items:
        most = state.updates_cap * 2 if state.updates_cap * 2 < policy.max_items else None
        await lanes.set_updates_cap(conn, lease, most)
        state = replace(state, updates_cap=most)
    return await owed(conn, lease, policy, state) if seal else None


def _learnt(policy: DeliveryPolicy, state: LaneState) -> DeliveryPolicy:
    """The policy with the cap that the appservice taught us."""
    cap = min(policy.max_body_bytes, state.body_cap_bytes or policy.max_body_bytes)
    return replace(policy, max_body_bytes=cap)


async def _seal_next(
    conn: Connection, lease: Lease, policy: DeliveryPolicy, state: LaneState
) -> Sealed | None:
    updates = await _device_updates(conn, lease, policy, state)
    if updates and state.updates_cap is not None:
        return await _freeze(conn, lease, policy, state, (), updates)
    told = updates.fields(policy.profile)
    last = state.sealed_to + MOST_SKIPPED
    while state.sealed_to < last:
        items, cut = await _next_items(conn, lease, policy, state, told_bytes=len(told))
        if not items and not updates:
            return None
        if updates or any(item.kind is not Kind.DROPPED for item in items):
            return await _freeze(conn, lease, policy, state, items, updates, cut=cut)
        state = await _step_over(conn, lease, state, items)
    return None


async def _device_updates(
    conn: Connection, lease: Lease, policy: DeliveryPolicy, state: LaneState
) -> DeviceUpdates:
    """A page of what waits to be told of devices; half of the body is left to the items."""
    if not state.device_updates:
        return DeviceUpdates()
    page = device_updates.Page(
        number=state.next_number,
        most=min(policy.max_items, state.updates_cap or policy.max_items),
        max_bytes=policy.max_body_bytes // 4,
    )
    lists = await device_updates.take_lists(conn, lease.appservice_id, page)
    if state.updates_cap is not None:  # of both together
        page = replace(page, most=page.most - len(lists))
    keys = await device_updates.take_keys(conn, lease.appservice_id, page)
    return DeviceUpdates(lists=lists, keys=keys)


async def _next_items(
    conn: Connection, lease: Lease, policy: DeliveryPolicy, state: LaneState, *, told_bytes: int
) -> tuple[Sequence[Item], bool]:
    """The next items that fit, those of deleted devices and those too old emptied.

    And whether more waits than these.
    """
    appservice_id = lease.appservice_id
    if state.deleted_devices:
        dropped = await outbox.drop_deleted(
            conn, appservice_id, after=state.sealed_to, max_items=policy.max_items
        )
        # Before the ledger: intake marks devices first, and counts last.
        await deleted_devices.forget_marked(conn, appservice_id, sealed_to=state.sealed_to)
        if dropped:
            await ledger.count(
                conn, {LedgerKey(appservice_id, Kind.TO_DEVICE, LedgerOutcome.DROPPED): dropped}
            )
    room = max(policy.max_body_bytes - told_bytes, 1)
    stored: Sequence[Item] = await outbox.next_items(
        conn,
        appservice_id,
        after=state.sealed_to,
        upto=state.head,
        max_items=policy.max_items,
        max_bytes=room,
    )
    stored = await expiring.without_expired(conn, appservice_id, stored, policy.expiry)
    waiting = await key_only.filled(conn, appservice_id, stored, max_bytes=room)
    fitting = within_limits(
        waiting, max_items=policy.max_items, max_body_bytes=room, profile=policy.profile
    )
    return waiting[:fitting], fitting < len(stored) or fitting == policy.max_items


async def _step_over(
    conn: Connection, lease: Lease, state: LaneState, items: Sequence[Item]
) -> LaneState:
    """Nothing of these is left to send."""
    upto = items[-1].position
    await lanes.skip(conn, lease, upto=upto)
    return replace(state, sealed_to=upto, acked_to=upto)


async def _freeze(
    conn: Connection,
    lease: Lease,
    policy: DeliveryPolicy,
    state: LaneState,
    items: Sequence[Item],
    updates: DeviceUpdates,
    *,
    cut: bool = False,
) -> Sealed:
    following, frame = build(state.place, policy, items, updates, cut=cut)
    await sealed.insert(conn, lease, following, frame, builder=BUILDER)
    return following
