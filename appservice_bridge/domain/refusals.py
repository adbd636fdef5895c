"""What follows when an appservice does not take a transaction: decided here, done elsewhere."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from appservice_bridge.domain.outcome import Refused, Unreachable

TOO_LARGE: Final = 413
ACCUSING: Final = frozenset({400, TOO_LARGE, 415, 422})  # they may mean an item; others an outage
UNAUTHORIZED: Final = frozenset({401, 403})
_REQUEST_TIMEOUT: Final = 408


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """How much proof it takes.

    Attributes:
        refusals: accusing ones before a transaction is split.
        part_refusals: before a part is, whose whole was refused already.
        suspect_refusals: before a transaction is split that may have been processed.
        suspect_seconds: that long after the first of them at the earliest.
        suspect_pinged: the last so many of them count only with a successful ping.
    """

    refusals: int = 3
    part_refusals: int = 1
    suspect_refusals: int = 20
    suspect_seconds: float = 900.0
    suspect_pinged: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What is known of a transaction once the outcome of its last attempt is recorded.

    Attributes:
        items: in it.
        updates: users and devices that it tells of.
        part: what it was a part of was refused.
        doubtful: some attempt may have been processed.
        counted: the last outcome is one of `refusals`.
        refusals: that count against it, since it was sealed.
        refused_seconds: since the first of them.
        probed: between this refusal and the one before it, a probe was acked.
        split_asked: an operator said that it is to be split, whatever may have been processed.
        bury_asked: an operator said that its one item, user or device is to be set aside.
    """

    items: int
    updates: int
    part: bool = False
    doubtful: bool = False
    counted: bool = False
    refusals: int = 0
    refused_seconds: float = 0.0
    probed: bool = False
    split_asked: bool = False
    bury_asked: bool = False


class Replacement(StrEnum):
    """By what a transaction is replaced.

    Attributes:
        UPDATES_LATER: all its items; what it tells of devices waits, and then goes alone.
        HALVES: two transactions, of half of its items each.
        FEWER_UPDATES: nothing; what it tells of devices waits, and goes in smaller transactions.
        BURIED_ITEM: nothing; its one item becomes a dead letter.
        BURIED_UPDATE: nothing; of its one user or device a dead letter says that it is not told.
    """

    UPDATES_LATER = "updates_later"
    HALVES = "halves"
    FEWER_UPDATES = "fewer_updates"
    BURIED_ITEM = "buried_item"
    BURIED_UPDATE = "buried_update"

    @property
    def buries(self) -> bool:
        """Whether something is given up."""
        return self in (Replacement.BURIED_ITEM, Replacement.BURIED_UPDATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SendAgain:
    """The same id and bytes, after a rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replace:
    """At once."""

    by: Replacement


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Send an empty transaction; where it is not acked, send again after a rest.

    Where it is, replace; but before something is buried, send it again at once: an outage may
    have ended between its refusal and the probe.
    """

    by: Replacement


Step: TypeAlias = SendAgain | Replace | Probe


def next_step(failed: Refused | Unreachable, history: History, thresholds: Thresholds) -> Step:
    """What follows an attempt that failed.

    Nothing is split that may have been processed, but for suspects and on an operator's word; and
    nothing is buried but between whose last two refusals a probe was acked, and on a word for it.
    """
    by = replacement(history)
    asked = history.bury_asked if by.buries else history.split_asked
    if asked:
        return Replace(by=by)
    if not isinstance(failed, Refused) or not history.counted:
        return SendAgain()
    if failed.status == TOO_LARGE and not by.buries and not history.doubtful:
        return Replace(by=by)
    if not _enough(history, thresholds):
        return SendAgain()
    return Replace(by=by) if by.buries and history.probed else Probe(by=by)


def replacement(history: History) -> Replacement:
    """The next smaller thing that can be accused."""
    if history.items and history.updates:
        return Replacement.UPDATES_LATER
    if history.items:
        return Replacement.HALVES if history.items > 1 else Replacement.BURIED_ITEM
    return Replacement.FEWER_UPDATES if history.updates > 1 else Replacement.BURIED_UPDATE


def may_have_processed(failed: Refused | Unreachable) -> bool:
    """Whether the appservice may have taken what the attempt brought."""
    if isinstance(failed, Unreachable):
        return not failed.unsent
    return failed.sent_before or failed.status >= 500 or failed.status == _REQUEST_TIMEOUT


def counts(failed: Refused | Unreachable, *, doubtful: bool) -> bool:
    """Whether the outcome may be the transaction's own fault; `doubtful`, this attempt included."""
    if isinstance(failed, Unreachable):
        return False
    failing = failed.status >= 500 or failed.status == _REQUEST_TIMEOUT
    return failed.status in ACCUSING or (doubtful and failing)


def needs_ping(
    failed: Refused | Unreachable, *, doubtful: bool, refusals: int, thresholds: Thresholds
) -> bool:
    """Whether the outcome counts only where the appservice is well; `refusals` before it."""
    near = refusals >= thresholds.suspect_refusals - thresholds.suspect_pinged
    return doubtful and near and counts(failed, doubtful=doubtful)


def refusals_of_part(*, doubtful: bool, thresholds: Thresholds) -> int:
    """With how many refusals a part begins; that of a suspect is one after a few, with pings."""
    return thresholds.suspect_refusals - thresholds.suspect_pinged if doubtful else 0


def _enough(history: History, thresholds: Thresholds) -> bool:
    if history.doubtful:
        return (
            history.refusals >= thresholds.suspect_refusals
            and history.refused_seconds >= thresholds.suspect_seconds
        )
    enough = thresholds.part_refusals if history.part else thresholds.refusals
    return history.refusals >= enough
