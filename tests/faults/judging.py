"""What came of a run: what senders were answered 200 for, against what receivers wrote down.

Nothing of the bridge is asked: neither its tables, nor its log, nor its code.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Final

from tests.faults.streams import POISON, Accepted, Came, appservice_of, delivered, fingerprint

SECOND_NS: Final = 1_000_000_000
EXAMPLES: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Exempt:
    """What a misbehaving appservice answers for itself.

    Attributes:
        loss: appservices that say 200 to what they have not read.
        stall: appservices that let things wait.
        split: appservices that refuse: parts replace their parent, so a fact may stand in two
            transactions of which one was refused.
        maybe: facts that were sent and not answered; they may come, once and in order.
        poison_every: every so-many-th room event is one that is to be buried; 0: none.
    """

    loss: Set[str] = frozenset()
    stall: Set[str] = frozenset()
    split: Set[str] = frozenset()
    maybe: Set[tuple[str, int]] = frozenset()
    poison_every: int = 0

    def buried(self, stream: str, number: int) -> bool:
        """Whether this is a fact that its appservice never takes."""
        every = self.poison_every
        return bool(every) and stream.startswith("relay-") and number % every == 0


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What came of a run.

    Attributes:
        facts: what the senders were answered 200 for.
        delivered: how many of these came in a transaction that was answered 200.
        lost: the others.
        doubled: facts that came under two transaction ids.
        reordered: facts that came after a later one of their stream, and transactions that came
            before an older one was taken.
        altered: transaction ids with two digests, facts that are not what was sent, and facts
            that nobody sent.
        stall_seconds: the longest time in which something waited and nothing was delivered.
        examples: a few of what is wrong.
    """

    facts: int = 0
    delivered: int = 0
    lost: int = 0
    doubled: int = 0
    reordered: int = 0
    altered: int = 0
    stall_seconds: float = 0.0
    examples: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.reordered or self.altered)

    def note(self, what: str) -> None:
        if len(self.examples) < EXAMPLES:
            self.examples.append(what)


def judge(
    accepted: Sequence[Accepted],
    logs: Mapping[str, Sequence[Came]],
    exempt: Exempt = Exempt(),
) -> Verdict:
    """Compare both sides; `logs` are the receivers' by appservice."""
    verdict = Verdict()
    for appservice, log in logs.items():
        own = [one for one in accepted if appservice_of(one.stream) == appservice]
        _Side(appservice, own, log, exempt, verdict).judge()
    return verdict


class _Side:
    """One appservice's part of it."""

    def __init__(
        self,
        appservice: str,
        accepted: Sequence[Accepted],
        log: Sequence[Came],
        exempt: Exempt,
        verdict: Verdict,
    ) -> None:
        self._appservice = appservice
        self._accepted = accepted
        self._log = log
        self._exempt = exempt
        self._verdict = verdict
        self._taken = {one.txn_id for one in log if one.status is not None and one.status < 300}

    def judge(self) -> None:
        first_seen = self._transactions()
        self._items(first_seen)
        if self._appservice not in self._exempt.stall:
            self._stall(first_seen)

    def _transactions(self) -> list[Came]:
        """Each transaction when it came first; its bytes and its turn are looked at."""
        digests: dict[str, str] = {}
        first_seen: list[Came] = []
        answered: set[str] = set()
        for one in self._log:
            if one.status is not None:
                answered |= {one.txn_id} if one.status < 300 else set()
            elif one.txn_id not in digests:
                digests[one.txn_id] = one.digest
                self._in_turn(one, first_seen, answered)
                first_seen.append(one)
            elif digests[one.txn_id] != one.digest:
                self._verdict.altered += 1
                self._verdict.note(f"{self._appservice}: {one.txn_id} has other bytes")
        return first_seen

    def _in_turn(self, one: Came, first_seen: Sequence[Came], answered: Set[str]) -> None:
        if not first_seen or first_seen[-1].txn_id in answered or self._may_jump():
            return
        before = first_seen[-1].txn_id
        self._verdict.reordered += 1
        self._verdict.note(f"{self._appservice}: {one.txn_id} before {before} was taken")

    def _may_jump(self) -> bool:
        return self._appservice in self._exempt.split | self._exempt.loss

    def _items(self, first_seen: Iterable[Came]) -> None:
        sent = {
            (one.stream, number)
            for one in self._accepted
            for number in range(one.first, one.last + 1)
        }
        seen: set[tuple[str, int]] = set()
        got: set[tuple[str, int]] = set()
        highest: dict[str, int] = defaultdict(int)
        for one in first_seen:
            taken = one.txn_id in self._taken
            if not taken and self._appservice in self._exempt.split:
                continue  # its parts came instead
            for stream, number, mark in one.items:
                self._item(stream, number, mark, one.txn_id, seen, highest)
                if taken:
                    got.add((stream, number))
        self._total(sent, seen, got)

    def _item(
        self,
        stream: str,
        number: int,
        mark: int,
        txn_id: str,
        seen: set[tuple[str, int]],
        highest: dict[str, int],
    ) -> None:
        name = (stream, number)
        kind = POISON if self._exempt.buried(stream, number) else "m.fault"
        if mark != fingerprint(delivered(stream, number, kind)):
            self._verdict.altered += 1
            self._verdict.note(f"{stream} {number} is not what was sent, in {txn_id}")
        if name in seen:
            self._verdict.doubled += 1
            self._verdict.note(f"{stream} {number} came again in {txn_id}")
        elif number < highest[stream]:
            self._verdict.reordered += 1
            self._verdict.note(f"{stream} {number} came after {highest[stream]}, in {txn_id}")
        seen.add(name)
        highest[stream] = max(number, highest[stream])

    def _total(
        self, sent: set[tuple[str, int]], seen: set[tuple[str, int]], got: set[tuple[str, int]]
    ) -> None:
        verdict = self._verdict
        verdict.facts += len(sent)
        verdict.delivered += len(got & sent)
        unknown = seen - sent - self._exempt.maybe
        for stream, number in sorted(unknown)[:EXAMPLES]:
            verdict.note(f"{stream} {number} came, and nobody was answered for it")
        verdict.altered += len(unknown)
        if self._appservice in self._exempt.loss:
            return
        lost = {name for name in sent - got if not self._exempt.buried(*name)}
        verdict.lost += len(lost)
        for stream, number in sorted(lost)[:EXAMPLES]:
            verdict.note(f"{stream} {number} is lost")

    def _stall(self, first_seen: Iterable[Came]) -> None:
        """The longest time in which something waited here and nothing came."""
        steps = [(one.at_ns, one.last - one.first + 1) for one in self._accepted]
        steps += [(one.at_ns, -len(one.items)) for one in first_seen if one.txn_id in self._taken]
        waiting, since, longest = 0, 0, 0
        for at_ns, change in sorted(steps):
            if waiting > 0 and change < 0:
                longest = max(longest, at_ns - since)
            if change < 0 or waiting <= 0:
                since = at_ns
            waiting += change
        verdict = self._verdict
        verdict.stall_seconds = max(verdict.stall_seconds, longest / SECOND_NS)
