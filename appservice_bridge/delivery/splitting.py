"""Puts parts, or nothing, in the place of a transaction that is not taken."""

from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

from appservice_bridge.delivery import sealing
from appservice_bridge.domain.policy import DeliveryPolicy
from appservice_bridge.domain.refusals import Replacement, refusals_of_part
from appservice_bridge.domain.transaction import BUILDER, Item, frame_for
from appservice_bridge.storage import lanes, outbox, refused, sealed, untold
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.lanes import LaneState
from appservice_bridge.storage.leases import Lease, LeaseLostError
from appservice_bridge.storage.refused import Grounds
from appservice_bridge.storage.sealed import Sealed, count_kinds


async def replace_refused(
    conn: Connection,
    lease: Lease,
    policy: DeliveryPolicy,
    parent: Sealed,
    by: Replacement,
    grounds: Grounds | None,
) -> Sealed | None:
    """Replace the transaction in flight; returns what is owed then, as `sealing.owed` does.

    All of it is one DB transaction: dying before its commit leaves the parent in flight, and after
    it the parts, of which no attempt has begun.

    Raises:
        LeaseLostError: someone else holds the lane, or replaced it already.
        AlteredTransactionError: it is not what was sealed, and so its parts would not be, either.
    """
    state = await lanes.hold(conn, lease)
    stored = await sealed.in_flight(conn, lease)
    if stored.number != parent.number:
        raise LeaseLostError(lease.appservice_id)
    await sealed.replace(conn, lease, stored)
    upto = await _put_in_place(conn, lease, policy, state, stored, by, grounds)
    await lanes.go_on(conn, lease, acked_to=upto)
    return await sealing.owed(conn, lease, policy, await lanes.hold(conn, lease))


async def _put_in_place(
    conn: Connection,
    lease: Lease,
    policy: DeliveryPolicy,
    state: LaneState,
    parent: Sealed,
    by: Replacement,
    grounds: Grounds | None,
) -> int:
    """Up to which position nothing is owed any more."""
    appservice_id = lease.appservice_id
    match by:
        case Replacement.UPDATES_LATER | Replacement.HALVES:
            if by is Replacement.UPDATES_LATER:
                await _tell_later(conn, lease, parent, most=parent.updates)
            await _seal_parts(conn, lease, policy, state, parent, by)
            return state.acked_to
        case Replacement.FEWER_UPDATES:
            await _tell_later(conn, lease, parent, most=parent.updates // 2)
        case Replacement.BURIED_ITEM | Replacement.BURIED_UPDATE if grounds is None:
            raise ValueError(f"{by} without grounds")
        case Replacement.BURIED_ITEM:
            await refused.bury_item(conn, appservice_id, parent, grounds)
        case Replacement.BURIED_UPDATE:
            await refused.bury_update(conn, appservice_id, parent, grounds)
        case _:
            assert_never(by)
    return parent.last_position


async def _tell_later(conn: Connection, lease: Lease, parent: Sealed, *, most: int) -> None:
    await untold.wait_again(conn, lease.appservice_id, number=parent.number)
    await lanes.set_updates_cap(conn, lease, most)


async def _seal_parts(
    conn: Connection,
    lease: Lease,
    policy: DeliveryPolicy,
    state: LaneState,
    parent: Sealed,
    by: Replacement,
) -> None:
    """Seal the parent's items under new ids, in their order, without anything else."""
    items = await outbox.sealed_items(
        conn, lease.appservice_id, first=parent.first_position, last=parent.last_position
    )
    half = len(items) // 2 if by is Replacement.HALVES else 0
    first = parent.first_position
    for these in (items[:half], items[half:]):
        if not these:
            continue
        last = these[-1].position if these[-1] is not items[-1] else parent.last_position
        await _seal_part(conn, lease, policy, state, parent, these, first=first, last=last)
        state = replace(state, next_number=state.next_number + 1)
        first = last + 1


async def _seal_part(
    conn: Connection,
    lease: Lease,
    policy: DeliveryPolicy,
    state: LaneState,
    parent: Sealed,
    items: Sequence[Item],
    *,
    first: int,
    last: int,
) -> None:
    kinds = count_kinds(items)
    frame = frame_for(kinds, policy.profile)
    part = Sealed(
        number=state.next_number,
        txn_id=state.place.txn_id,
        first_position=first,
        last_position=last,
        kinds=kinds,
        attempt_open=False,
        doubtful=parent.doubtful,
        refusals=refusals_of_part(doubtful=parent.doubtful, thresholds=policy.thresholds),
        refused_since=parent.refused_since if parent.doubtful else None,
        part_of=parent.number,
        body=frame.splice(items),
    )
    await sealed.insert(conn, lease, part, frame, builder=BUILDER)
