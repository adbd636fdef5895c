"""What becomes of captured rows: the items they make, each with what tells its repeat."""

import hashlib
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass

from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.domain.raw_json import likeness
from appservice_bridge.routing.device_changes import DeviceChanges
from appservice_bridge.storage.capture_log import Captured, CapturedKind
from appservice_bridge.storage.dead_letters import Buried
from appservice_bridge.storage.deleted_devices import DeletedInbox
from appservice_bridge.storage.device_updates import DeviceKey
from appservice_bridge.storage.ledger import LedgerKey
from appservice_bridge.storage.outbox import Routed
from appservice_bridge.storage.repeats import EventKey, InboxKey


class KeyMissingError(BridgeError):
    """A row of the log does not say whose it is; roll back, and end the worker.

    Whoever appends writes the key, so this is a fault of ours or another hand in the tables.
    """

    def __init__(self, row: Captured) -> None:
        super().__init__(f"row {row.seq} of the capture log, a {row.kind}, has no key")
        self.seq = row.seq
        self.kind = row.kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What becomes of one fact, if it is new.

    Attributes:
        key: tells a repeat; None where nothing can, and then every copy is new.
        routed: one item per interested appservice.
        buried: the same, where it cannot be delivered.
        deleted: a device for which nothing that came before is delivered.
        emptied: one for which nothing is that came before and has a place in the inbox up to there.
    """

    key: InboxKey | EventKey | None = None
    routed: tuple[Routed, ...] = ()
    buried: tuple[Buried, ...] = ()
    deleted: tuple[DeviceKey, ...] = ()
    emptied: tuple[DeletedInbox, ...] = ()


class Routing:
    """What becomes of a batch of the log; filled row by row.

    Attributes:
        candidates: in the order of the log.
        devices: what was said of devices.
        foreign: users whom nobody owns.
        counts: what goes to the ledger; repeats are counted by `only_new`.
        withdrawn: appservices that are registered no longer, and not removed.
    """

    def __init__(self, withdrawn: Container[str] = ()) -> None:
        self.withdrawn = withdrawn
        self.candidates: list[Candidate] = []
        self.devices = DeviceChanges()
        self.foreign: set[str] = set()
        self.counts: Counter[LedgerKey] = Counter()
        self._alike: Counter[tuple[int, str, str]] = Counter()

    def bury_whole(self, row: Captured, kind: str, reason: str, payload: bytes) -> None:
        """Set a part of a row aside; once, when the transaction that it is in comes again.

        Parts of one transaction that are alike are numbered, and each is buried.
        """
        item = Buried(
            appservice_id=row.appservice_id or "", kind=kind, reason=reason, payload=payload
        )
        key = None
        if row.kind == CapturedKind.TRANSACTION:
            like = likeness(payload.decode(errors="surrogateescape"))
            self._alike[row.seq, kind, like] += 1
            key = part_key(row, f"buried {kind}", self._alike[row.seq, kind, like], like)
        self.candidates.append(Candidate(key=key, buried=(item,)))

    def inbox_keys(self) -> list[InboxKey]:
        """Keys of the to-device messages."""
        return [c.key for c in self.candidates if isinstance(c.key, InboxKey)]

    def event_keys(self) -> list[EventKey]:
        """Keys of room events, and of what comes in transactions and has no key of its own."""
        return [c.key for c in self.candidates if isinstance(c.key, EventKey)]

    def only_new(self, fresh: set[InboxKey | EventKey]) -> list[Candidate]:
        """The candidates that are no repeats, of those before or of each other; counts the rest."""
        left = set(fresh)
        new = []
        for candidate in self.candidates:
            if candidate.key is None or candidate.key in left:
                new.append(candidate)
                left.discard(candidate.key)
            else:
                repeated = [(item.appservice_id, item.kind) for item in candidate.routed]
                repeated += [(item.appservice_id, item.kind) for item in candidate.buried]
                self.counts.update(LedgerKey(*whose, LedgerOutcome.REPEATED) for whose in repeated)
        return new


def part_key(row: Captured, kind: str, number: int, like: str) -> EventKey | None:
    """Tells a part of a transaction when the homeserver sends it again with other bytes.

    The same under another transaction id is another; a row without an id tells nothing.

    Args:
        row: a transaction; it keeps its id where others keep a device.
        kind: of the part.
        number: among the parts that are alike, from 1.
        like: the part, however it is written.
    """
    if row.device_id is None:
        return None
    parts = (kind, row.device_id.encode(), f"{number}:{like}")
    return EventKey(str(row.appservice_id), hashlib.sha256(repr(parts).encode()).digest())
