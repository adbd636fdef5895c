"""Builds a transaction: the same place, items and updates give the same id and bytes."""

from collections.abc import Callable, Sequence
from typing import Final

from appservice_bridge.domain.device_updates import DeviceUpdates
from appservice_bridge.domain.policy import DeliveryPolicy
from appservice_bridge.domain.transaction import Frame, Item, Kind, frame_for, within_limits
from appservice_bridge.storage import outbox
from appservice_bridge.storage.database import Database, DatabaseUnavailableError
from appservice_bridge.storage.lanes import Place
from appservice_bridge.storage.sealed import Sealed, captured, count_kinds
from appservice_bridge.storage.turns import Following

NO_UPDATES: Final = DeviceUpdates()


def build(
    place: Place,
    policy: DeliveryPolicy,
    items: Sequence[Item],
    updates: DeviceUpdates = NO_UPDATES,
    *,
    cut: bool,
) -> tuple[Sealed, Frame]:
    """The transaction at a place, and the frame that it is rebuilt from; `cut`: more waits."""
    kinds = count_kinds(items)
    frame = frame_for(kinds, policy.profile, updates.fields(policy.profile))
    sealed = Sealed(
        number=place.number,
        txn_id=place.txn_id,
        first_position=place.after + 1,
        last_position=items[-1].position if items else place.after,
        kinds=kinds,
        device_lists=len(updates.lists),
        device_keys=len(updates.keys),
        cut=cut,
        captured=captured(items),
        body=frame.splice(items),
    )
    return sealed, frame


async def build_ahead(
    database: Database, appservice_id: str, policy_now: Callable[[], DeliveryPolicy], place: Place
) -> Following | None:
    """Read and build what follows, and seal nothing: `turns.take` does, if all is as it was.

    The policy is asked for when there is a connection: by then there may be less room.

    None where there is nothing, or something that has to be looked at under the lane's lock: what
    may be too old, what is still in the homeserver's inbox, or nothing but gaps.
    """
    try:
        async with database.statement() as conn:
            policy = policy_now()
            items = await outbox.next_items(
                conn,
                appservice_id,
                after=place.after,
                max_items=policy.max_items,
                max_bytes=policy.max_body_bytes,
            )
    except DatabaseUnavailableError:
        return None  # who seals will hear of it, too
    return built_of(items, policy, place)


def built_of(items: Sequence[Item], policy: DeliveryPolicy, place: Place) -> Following | None:
    """The same of what waits first, if it is known."""
    fitting = within_limits(
        items,
        max_items=policy.max_items,
        max_body_bytes=policy.max_body_bytes,
        profile=policy.profile,
    )
    these = items[:fitting]
    if not all(map(_plain, these)) or all(item.kind is Kind.DROPPED for item in these):
        return None
    cut = fitting < len(items) or fitting == policy.max_items
    sealed, frame = build(place, policy, these, cut=cut)
    return Following(sealed=sealed, frame=frame)


def _plain(item: Item) -> bool:
    return item.waited is None and (bool(item.payload) or item.kind is Kind.DROPPED)
