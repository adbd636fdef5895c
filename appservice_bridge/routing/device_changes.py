"""What captured rows say of devices: whose lists change, and which keys are counted."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from appservice_bridge.domain.facts import LARGEST_INTEGER, is_text
from appservice_bridge.domain.owners import Owners
from appservice_bridge.domain.raw_json import MalformedError, decode, elements, members, string
from appservice_bridge.storage.capture_log import Captured
from appservice_bridge.storage.device_updates import DeviceKey, KeyChange, ListKey
from appservice_bridge.storage.repeats import ChangeKey

MOST_SIGNED: Final = 10_000
"""Users in one row of signatures; Synapse writes those of one request."""
MOST_TYPES: Final = 100_000
"""Of one device; ingest takes a hundred, and what a transaction holds is bounded by its size."""


class ListChange(NamedTuple):
    """A user in some device lists, and the change in the homeserver's stream that put them there.

    Attributes:
        key: tells a repeat; None where nothing can.
    """

    key: ChangeKey | None
    user_id: str
    device_id: str | None


class Signed(NamedTuple):
    """Keys that somebody signed, and the row of the homeserver's stream that says so.

    Attributes:
        key: tells a repeat; None where nothing can.
    """

    key: ChangeKey | None
    lists: tuple[ListKey, ...]


@dataclass(slots=True, kw_only=True)
class DeviceChanges:
    """What a batch of the log says of devices; of each user and device the latest.

    Attributes:
        seen: changes of users in the homeserver's own stream, in the order of the log.
        signed: the same of signatures.
        lists: changes for one appservice each.
        if_tracked: users who changed for an appservice only if it still tracks them.
        deleted: devices that went.
        keys: devices whose keys changed.
    """

    seen: list[ListChange] = field(default_factory=list)
    signed: list[Signed] = field(default_factory=list)
    lists: dict[ListKey, str] = field(default_factory=dict)
    if_tracked: set[ListKey] = field(default_factory=set)
    deleted: set[DeviceKey] = field(default_factory=set)
    keys: dict[DeviceKey, KeyChange] = field(default_factory=dict)

    def change_keys(
        self, appservice_ids: Iterable[str], user_id: str, device_id: str, change: KeyChange
    ) -> None:
        """A device's keys changed; what this change does not say stays as it was said before."""
        for appservice_id in appservice_ids:
            key = DeviceKey(appservice_id, user_id, device_id)
            before = self.keys.get(key, change)
            self.keys[key] = KeyChange(
                recount=change.recount,
                counts=before.counts if change.counts is None else change.counts,
                fallback_types=(
                    before.fallback_types
                    if change.fallback_types is None
                    else change.fallback_types
                ),
            )

    def forget_keys(self, devices: Iterable[DeviceKey]) -> None:
        """These devices were deleted."""
        for device in devices:
            self.keys.pop(device, None)
            self.deleted.add(device)

    def stream_keys(self) -> list[ChangeKey]:
        """Keys of what came from the homeserver's streams."""
        keys = [*(change.key for change in self.seen), *(signed.key for signed in self.signed)]
        return [key for key in keys if key is not None]

    def apply_fresh(self, fresh: set[ChangeKey], owners: Owners) -> set[str]:
        """Settle whom the seen changes concern; returns users of whom trackers must hear.

        A repeat concerns nobody. An appservice always hears of its own users.
        """
        for signed in self.signed:
            if signed.key is None or signed.key in fresh:
                self._apply_signed(signed, owners)
        users = set()
        for change in self.seen:
            if change.key is not None and change.key not in fresh:
                continue
            users.add(change.user_id)
            owning = owners.of(change.user_id)
            for appservice_id in owning:
                self.lists[ListKey(appservice_id, change.user_id)] = "changed"
            if change.device_id is not None:
                self.change_keys(owning, change.user_id, change.device_id, KeyChange(recount=True))
        return users

    def _apply_signed(self, signed: Signed, owners: Owners) -> None:
        """Who is none of the appservice's own may have left it meanwhile, and that must stand."""
        for key in signed.lists:
            if key.appservice_id in owners.of(key.user_id):
                self.lists[key] = "changed"
            else:
                self.if_tracked.add(key)


def list_change(row: Captured, user_id: str, changes: DeviceChanges) -> None:
    """The devices of a user changed: for all whom it concerns, or for one appservice.

    Raises:
        MalformedError: it says something else than `changed` or `left`.
    """
    if row.appservice_id is None:
        device_id = row.device_id
        key = None
        if row.stream_id is not None:
            key = ChangeKey(row.stream_id, user_id, device_id or "")
        changes.seen.append(ListChange(key, user_id, device_id))
        return
    change = decode(row.body)
    if change not in ("changed", "left"):
        raise MalformedError("a device list update is changed or left")
    changes.lists[ListKey(row.appservice_id, user_id)] = change


def signatures(row: Captured, signer: str, owners: Owners, changes: DeviceChanges) -> None:
    """Somebody signed keys of others: those changed, for the signer's appservices.

    Raises:
        MalformedError: the row is no list of user ids; its key is taken all the same.
    """
    key = None if row.stream_id is None else ChangeKey(row.stream_id, signer, "")
    lists: list[ListKey] = []
    try:
        for user_id in [string(one) for one in elements(decode(row.body), most=MOST_SIGNED)]:
            lists += [ListKey(appservice_id, user_id) for appservice_id in owners.of(signer)]
    finally:
        changes.signed.append(Signed(key, tuple(lists)))


def key_change(row: Captured) -> KeyChange:
    """What a row says of a device's keys.

    Raises:
        MalformedError: it is no object of counts and types.
    """
    if not row.body:
        return KeyChange(recount=True)
    said = members(decode(row.body))
    counts, types = said.get("one_time_key_counts"), said.get("unused_fallback_key_types")
    return KeyChange(
        recount=False,
        counts=None if counts is None else key_counts(counts),
        fallback_types=None if types is None else fallback_types(types),
    )


def key_counts(raw: str) -> bytes:
    """One-time key counts as they are kept, of whatever source.

    Raises:
        MalformedError: it is no object of algorithms and whole numbers.
    """
    counts = {}
    for algorithm, count in members(raw).items():
        whole = count.isascii() and count.isdigit() and len(count) <= len(str(LARGEST_INTEGER))
        if not whole or not is_text(algorithm):
            raise MalformedError("a count is a whole number of an algorithm")
        counts[algorithm] = int(count)
    return json.dumps(counts).encode()


def fallback_types(raw: str) -> bytes:
    """Unused fallback key types as they are kept, of whatever source.

    Raises:
        MalformedError: it is no array of algorithms.
    """
    types = [string(one) for one in elements(raw, most=MOST_TYPES)]
    if not all(map(is_text, types)):
        raise MalformedError("a type is the name of an algorithm")
    return json.dumps(types).encode()
