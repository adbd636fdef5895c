"""Cuts the next transaction from an outbox and freezes it."""

from collections.abc import Sequence

from appservice_bridge.domain.policy import DeliveryPolicy
from appservice_bridge.domain.transaction import BUILDER, Item, frame_for, within_limits
from appservice_bridge.storage import lanes, outbox, sealed
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.lanes import LaneState
from appservice_bridge.storage.leases import Lease
from appservice_bridge.storage.sealed import Sealed, count_kinds


async def owed(
    conn: Connection, lease: Lease, policy: DeliveryPolicy, state: LaneState
) -> Sealed | None:
    """The transaction in flight, else the next one, sealed now; None if nothing waits.

    Raises:
        LeaseLostError: someone else holds the lane.
        AlteredTransactionError: the one in flight is not what was sealed.
    """
    if state.sealed_to > state.acked_to:
        return await sealed.in_flight(conn, lease)
    return await _seal_next(conn, lease, policy, state)


async def ack_and_seal_next(
    conn: Connection, lease: Lease, policy: DeliveryPolicy, taken: Sealed, *, status: int
) -> Sealed | None:
    """Let go of what was taken and freeze what follows, in one DB transaction.

    Raises:
        LeaseLostError: someone else holds the lane.
    """
    await sealed.ack(conn, lease, taken, status=status)
    return await owed(conn, lease, policy, await lanes.hold(conn, lease))


async def _seal_next(
    conn: Connection, lease: Lease, policy: DeliveryPolicy, state: LaneState
) -> Sealed | None:
    waiting = await outbox.next_items(
        conn,
        lease.appservice_id,
        after=state.sealed_to,
        max_items=policy.max_items,
        max_bytes=policy.max_body_bytes,
    )
    if not waiting:
        return None
    items = _first_that_fit(waiting, policy)
    kinds = count_kinds(items)
    frame = frame_for(kinds, policy.profile)
    following = Sealed(
        number=state.next_number,
        txn_id=f"ab{state.epoch}-{state.next_number}",
        first_position=items[0].position,
        last_position=items[-1].position,
        kinds=kinds,
        body=frame.splice(items),
    )
    await sealed.insert(conn, lease, following, frame, builder=BUILDER)
    return following


def _first_that_fit(waiting: Sequence[Item], policy: DeliveryPolicy) -> Sequence[Item]:
    fitting = within_limits(
        waiting,
        max_items=policy.max_items,
        max_body_bytes=policy.max_body_bytes,
        profile=policy.profile,
    )
    return waiting[:fitting]
