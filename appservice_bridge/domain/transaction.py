"""A transaction's body: pieces of a frame with the items' bytes spliced between them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.expiry import Waited

BUILDER: Final = 1  # rises when the same frame and items would give other bytes
_FRAME_BYTES: Final = 512  # more than the frame of all kinds under all names takes


class Kind(StrEnum):
    """What an item of the outbox is, and so which array of the body holds it.

    Attributes:
        DROPPED: its device was deleted before it was sealed, or it was too old by then; it fills a
            position and no array.
    """

    EVENT = "event"
    EPHEMERAL = "ephemeral"
    TO_DEVICE = "to_device"
    DROPPED = "dropped"


class Profile(StrEnum):
    """Which field names an appservice reads (MSC2409, MSC3202 and their stable successors)."""

    UNSTABLE = "unstable"
    STABLE = "stable"
    BOTH = "both"


_STABLE_TO_DEVICE: Final = ("to_device",)
_UNSTABLE_TO_DEVICE: Final = ("de.sorunome.msc2409.to_device",)
_BOTH_EPHEMERAL: Final = ("ephemeral", "de.sorunome.msc2409.ephemeral")

# The order of the fields is the order most bots process them in: keys before what they open.
_FIELDS: Final[Mapping[Profile, Mapping[Kind, tuple[str, ...]]]] = {
    Profile.UNSTABLE: {Kind.TO_DEVICE: _UNSTABLE_TO_DEVICE, Kind.EPHEMERAL: _BOTH_EPHEMERAL},
    Profile.STABLE: {Kind.TO_DEVICE: _STABLE_TO_DEVICE, Kind.EPHEMERAL: ("ephemeral",)},
    Profile.BOTH: {
        Kind.TO_DEVICE: _STABLE_TO_DEVICE + _UNSTABLE_TO_DEVICE,
        Kind.EPHEMERAL: _BOTH_EPHEMERAL,
    },
}


class AlteredTransactionError(BridgeError):
    """What would be sent is not what was sealed; the lane must stop and an operator must look."""

    def __init__(self, txn_id: str) -> None:
        super().__init__(f"transaction {txn_id} does not match its seal")
        self.txn_id = txn_id


class Item(NamedTuple):
    """One entry of the outbox, as it will stand in a body; a tuple, for there are very many.

    Attributes:
        position: place in the appservice's outbox, 1-based and dense.
        payload: a JSON object, the bytes that are sent.
        waited: of what is not sealed yet, typing and presence only.
        captured: when it was, by this process's `time.monotonic()`; known of some only.
    """

    position: int
    kind: Kind
    payload: bytes
    waited: Waited | None = None
    captured: float | None = None

    def __repr__(self) -> str:
        return f"Item({self.position}, {self.kind}, {len(self.payload)} bytes)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Every byte of a body that is neither an item's payload nor a comma between two items.

    Attributes:
        pieces: one more than `slots`; slot n stands between pieces n and n + 1.
        slots: the kind whose items fill the slot, in position order.
    """

    pieces: tuple[bytes, ...]
    slots: tuple[Kind, ...]

    def splice(self, items: Sequence[Item]) -> bytes:
        """The body: frame and items, joined without parsing either."""
        filled = {
            kind: b",".join([item.payload for item in items if item.kind is kind])
            for kind in set(self.slots)
        }
        parts = [self.pieces[0]]
        for kind, piece in zip(self.slots, self.pieces[1:], strict=True):
            parts += (filled[kind], piece)
        return b"".join(parts)


def frame_for(kinds: Iterable[Kind], profile: Profile, more: bytes = b"") -> Frame:
    """The frame of a transaction with items of these kinds; `events` is always there.

    `more` are members that no item fills, each with a comma before it.
    """
    present = set(kinds)
    names = [("events", Kind.EVENT)]
    for kind, fields in _FIELDS[profile].items():
        if kind in present:
            names += [(name, kind) for name in fields]
    opening = [b'"%s":[' % name.encode() for name, _ in names]
    pieces = [b"{" + opening[0], *(b"]," + piece for piece in opening[1:]), b"]" + more + b"}"]
    return Frame(pieces=tuple(pieces), slots=tuple(kind for _, kind in names))


def digest(body: bytes) -> bytes:
    """SHA-256 of a body: 32 bytes."""
    return hashlib.sha256(body).digest()


def within_limits(
    items: Sequence[Item],
    *,
    max_items: int,
    max_body_bytes: int,
    profile: Profile = Profile.BOTH,
) -> int:
    """How many of the first items fit one transaction; at least one, where there is one.

    Room for the frame is kept; an item counts once for each field that it is sent in.
    """
    room = max_body_bytes - _FRAME_BYTES
    for count, item in enumerate(items[:max_items]):
        copies = len(_FIELDS[profile].get(item.kind, ("events",)))
        room -= copies * (len(item.payload) + 1)
        if room < 0:
            return max(count, 1)
    return min(len(items), max_items)
