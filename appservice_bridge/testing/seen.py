"""What came in for an appservice: attempts, what was taken, and who waits for it."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

JsonDict = dict[str, Any]
Where = Literal["event", "to_device", "ephemeral"]
KINDS: Final[tuple[Where, ...]] = ("event", "to_device", "ephemeral")
TO_DEVICE: Final = ("to_device", "de.sorunome.msc2409.to_device")
EPHEMERAL: Final = ("ephemeral", "de.sorunome.msc2409.ephemeral")
DEVICE_LISTS: Final = ("device_lists", "org.matrix.msc3202.device_lists")
KEY_COUNTS: Final = (
    "device_one_time_keys_count",
    "org.matrix.msc3202.device_one_time_keys_count",
)
FALLBACK_KEYS: Final = (
    "device_unused_fallback_key_types",
    "org.matrix.msc3202.device_unused_fallback_key_types",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """One transaction, under whichever names its fields came.

    Attributes:
        body: the whole of it as it was sent.
    """

    txn_id: str
    body: JsonDict = field(repr=False)

    @property
    def events(self) -> list[JsonDict]:
        """Room events."""
        return list(self.body.get("events", []))

    @property
    def to_device(self) -> list[JsonDict]:
        """Messages, each with `to_user_id`, `to_device_id`, `type`, `sender`, `content`."""
        return list(self._member(TO_DEVICE, []))

    @property
    def ephemeral(self) -> list[JsonDict]:
        """Typing, receipts, presence."""
        return list(self._member(EPHEMERAL, []))

    @property
    def changed(self) -> list[str]:
        """Users whose devices changed."""
        return list(self._member(DEVICE_LISTS, {}).get("changed", []))

    @property
    def left(self) -> list[str]:
        """Users who share no room with the appservice any more."""
        return list(self._member(DEVICE_LISTS, {}).get("left", []))

    @property
    def key_counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """Unclaimed one-time keys: user, device, algorithm, count."""
        return dict(self._member(KEY_COUNTS, {}))

    @property
    def fallback_keys(self) -> dict[str, dict[str, list[str]]]:
        """Algorithms whose fallback key is unused: user, device, names."""
        return dict(self._member(FALLBACK_KEYS, {}))

    def items(self, kind: Where) -> list[JsonDict]:
        """All of a kind."""
        members = {"event": self.events, "to_device": self.to_device, "ephemeral": self.ephemeral}
        return members[kind]

    def _member(self, names: tuple[str, str], default: Any) -> Any:
        return next((self.body[name] for name in names if name in self.body), default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One request with a transaction, and what it was answered.

    Attributes:
        at: monotonic seconds.
        status: None: no answer was given, or none yet.
        by: who decided: the bot (handler or url), `fail_next`, or nobody yet.
    """

    at: float
    txn_id: str
    items: int
    status: int | None
    by: str

    def told(self, now: float) -> str:
        """One line, without anything of what it held."""
        answer = "no answer yet" if self.status is None else f"answered {self.status}"
        return (
            f"{now - self.at:7.2f} s ago  {self.txn_id}  {self.items} items  {answer} ({self.by})"
        )


@dataclass(slots=True)
class Seen:
    """Belongs to one event loop; what it has is only ever added to.

    Attributes:
        attempts: every request, in order.
        transactions: taken by the bot (2xx), in order, each once.
        held: numbers of attempts that wait for `release`.
    """

    attempts: list[Attempt] = field(default_factory=list)
    transactions: list[Transaction] = field(default_factory=list)
    held: set[int] = field(default_factory=set)
    _claimed: set[tuple[Where, int]] = field(default_factory=set)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def begin(self, txn_id: str, body: JsonDict) -> int:
        """An attempt came in; its number."""
        items = sum(len(Transaction(txn_id=txn_id, body=body).items(kind)) for kind in KINDS)
        now = time.monotonic()
        self.attempts.append(Attempt(at=now, txn_id=txn_id, items=items, status=None, by="nobody"))
        number = len(self.attempts) - 1
        async with self._changed:
            self._changed.notify_all()
        return number

    async def end(self, number: int, status: int | None, *, by: str, body: JsonDict) -> None:
        """It is answered so; what is taken for the first time is there for those who wait."""
        began = self.attempts[number]
        self.attempts[number] = Attempt(
            at=began.at, txn_id=began.txn_id, items=began.items, status=status, by=by
        )
        known = any(one.txn_id == began.txn_id for one in self.transactions)
        if status is not None and 200 <= status < 300 and not known:
            self.transactions.append(Transaction(txn_id=began.txn_id, body=body))
        async with self._changed:
            self._changed.notify_all()

    async def hold(self, number: int) -> None:
        """An attempt waits from now on."""
        self.held.add(number)
        async with self._changed:
            self._changed.notify_all()

    def unclaimed(self, kind: Where) -> Iterator[tuple[int, JsonDict]]:
        """Items of taken transactions that no check has claimed, each with its place."""
        taken = (item for one in self.transactions for item in one.items(kind))
        for place, item in enumerate(taken):
            if (kind, place) not in self._claimed:
                yield place, item

    def first(self, kind: Where, wanted: JsonDict) -> tuple[int, JsonDict] | None:
        """The first unclaimed item whose fields are as wanted, with its place."""
        for place, item in self.unclaimed(kind):
            if all(item.get(name) == value for name, value in wanted.items()):
                return place, item
        return None

    def claim(self, kind: Where, place: int) -> None:
        """That item was expected; no other check gets it."""
        self._claimed.add((kind, place))

    def claim_all(self) -> None:
        """Nothing of what came so far is expected any more."""
        for kind in KINDS:
            self._claimed |= {(kind, place) for place, _ in self.unclaimed(kind)}

    async def until(self, found: Callable[[], bool], *, within: float) -> bool:
        """Wait until something holds of what was seen; whether it did in so many seconds."""
        try:
            async with asyncio.timeout(within), self._changed:
                await self._changed.wait_for(found)
        except TimeoutError:
            return False
        return True


def parsed(raw: bytes) -> JsonDict:
    """A transaction's body.

    Raises:
        ValueError: it is no JSON object.
    """
    body = json.loads(raw)
    if not isinstance(body, dict):
        raise ValueError("a transaction is an object")
    return body
