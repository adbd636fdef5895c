"""A batch of nothing but messages that can go as they were captured: what most batches are."""

from collections.abc import Sequence

from appservice_bridge.domain.owners import Owners
from appservice_bridge.domain.to_device import is_as_synapse_writes_it, opening
from appservice_bridge.storage.capture_log import Captured, CapturedKind
from appservice_bridge.storage.straight import Straight


def straight_items(rows: Sequence[Captured], owners: Owners) -> list[Straight] | None:
    """To whom the messages of a batch go; None if any row of it has to be looked at longer."""
    items: list[Straight] = []
    keys = set()
    for row in rows:
        if row.kind != CapturedKind.TO_DEVICE or row.stream_id is None:
            return None
        if row.user_id is None or row.device_id is None:
            return None
        appservice_ids = owners.of(row.user_id)
        if not appservice_ids or not is_as_synapse_writes_it(row.body):
            return None
        begins = opening(row.user_id, row.device_id)
        for appservice_id in appservice_ids:
            items.append(Straight(row, appservice_id, begins))  # noqa: PERF401 - one is faster
        keys.add((row.stream_id, row.user_id, row.device_id))
    return items if items and len(keys) == len(rows) else None
