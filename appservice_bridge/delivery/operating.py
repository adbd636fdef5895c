"""The operator's verbs over lanes and dead letters, for commands and for the admin port.

Whatever changes something puts down who did it, in the same DB transaction.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final
from uuid import UUID

from appservice_bridge.domain.author import Author
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.progress import Tell, nobody
from appservice_bridge.storage import admin_audit, letters, orders, owed, redriving
from appservice_bridge.storage.database import Connection, Database
from appservice_bridge.storage.letters import Letter
from appservice_bridge.storage.orders import Standing, UnknownAppserviceError
from appservice_bridge.storage.owed import LaneLast, OwedTransaction

BATCH: Final = 200  # letters in one DB transaction, for which intake waits


@dataclass(frozen=True, slots=True)
class _Change:
    """What is done to letters of one appservice; it returns to which."""

    action: str
    outcome: str
    run: Callable[[Connection, str, Sequence[UUID]], Awaitable[set[UUID]]]


class PausedError(BridgeError):
    """The lane is paused, and nothing is sent before it is resumed."""

    def __init__(self, appservice_id: str, standing: Standing) -> None:
        since = f"{standing.paused_at:%Y-%m-%d %H:%M:%S}"
        super().__init__(
            f"{appservice_id} is paused since {since} UTC: "
            f"`appservice-bridge resume {appservice_id}` makes it go on"
        )


class NothingInFlightError(BridgeError):
    """There is no transaction that could be split or buried."""

    def __init__(self, appservice_id: str, to: str) -> None:
        super().__init__(
            f"nothing of {appservice_id} is in flight, so there is nothing to {to}; "
            f"`appservice-bridge transactions {appservice_id}` shows what is"
        )


class SeveralInFlightError(BridgeError):
    """More than one thing would be set aside; it must be split first."""

    def __init__(self, appservice_id: str, one: OwedTransaction) -> None:
        told = one.device_lists + one.device_keys
        what = [f"{one.items} items" if one.items != 1 else "1 item"] if one.items else []
        what += (
            [f"{told} updates of users and devices" if told != 1 else "1 update"] if told else []
        )
        super().__init__(
            f"{one.txn_id} is not buried: it holds {' and '.join(what)}: "
            f"`appservice-bridge retry {appservice_id} --split` first"
        )
        self.txn_id = one.txn_id


class NotSplittableError(BridgeError):
    """What is in flight is one thing; it can only be taken, or set aside."""

    def __init__(self, appservice_id: str, one: OwedTransaction) -> None:
        what = "one item" if one.items else "what is told of one user or device"
        super().__init__(
            f"{one.txn_id} holds {what}: it cannot be split; "
            f"`appservice-bridge retry {appservice_id} --bury` sets it aside"
        )
        self.txn_id = one.txn_id


class NotInFlightError(BridgeError):
    """What an operator meant is not what would be set aside now; nothing is."""

    def __init__(self, appservice_id: str, txn_id: str) -> None:
        super().__init__(
            f"{txn_id} is not in flight any more, and nothing was set aside; "
            f"`appservice-bridge transactions {appservice_id}` shows what is"
        )
        self.txn_id = txn_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """What an appservice has not acknowledged, and what came of its lane's attempts last."""

    transactions: list[OwedTransaction]
    last: LaneLast


async def retry(
    database: Database, appservice_id: str, *, by: Author, split: bool = False
) -> Standing:
    """End a lane's rest, also a halt; with `split` what is in flight may be split.

    Dying before the commit does nothing; after it, workers see it at their next look at the latest.

    Raises:
        UnknownAppserviceError, PausedError, NothingInFlightError, NotSplittableError: as they
            say.
    """
    async with database.transaction() as conn:
        standing = await _standing(conn, appservice_id)
        if standing.paused_at is not None:
            raise PausedError(appservice_id, standing)
        if split:
            await _ask_split(conn, appservice_id, standing)
        await orders.go_on(conn, appservice_id)
        outcome = "rest ended, may be split" if split else "rest ended"
        await admin_audit.write(conn, by, "retry", appservice_id=appservice_id, outcome=outcome)
        return standing


async def _ask_split(conn: Connection, appservice_id: str, standing: Standing) -> None:
    one = await _first(conn, appservice_id, standing)
    if one is None:
        raise NothingInFlightError(appservice_id, "split")
    if one.things == 1:
        raise NotSplittableError(appservice_id, one)
    await orders.ask_split(conn, appservice_id)


async def buriable(database: Database, appservice_id: str) -> OwedTransaction:
    """The transaction in flight, if it is of one item, user or device: what `bury` would bury.

    Raises:
        UnknownAppserviceError, PausedError, NothingInFlightError, SeveralInFlightError: as they
            say.
    """
    async with database.transaction() as conn:
        one = await _first(conn, appservice_id, await _standing(conn, appservice_id))
        if one is None:
            raise NothingInFlightError(appservice_id, "bury")
        return _alone(appservice_id, one)


async def bury(database: Database, appservice_id: str, txn_id: str, *, by: Author) -> Standing:
    """Have this transaction set aside as a dead letter, and the lane go on.

    Its lane does it, in place of the next attempt or after the one that is under way; an ack that
    comes first wins. The word stands with the transaction until either, also across restarts.
    Dying before the commit does nothing.

    Raises:
        UnknownAppserviceError, PausedError, SeveralInFlightError: as they say.
        NotInFlightError: it was taken or replaced meanwhile; nothing is set aside.
    """
    async with database.transaction() as conn:
        standing = await _standing(conn, appservice_id)
        one = await _first(conn, appservice_id, standing)
        if one is None or one.txn_id != txn_id:
            raise NotInFlightError(appservice_id, txn_id)
        number = _alone(appservice_id, one).number
        if not await orders.ask_bury(conn, appservice_id, number=number):
            raise NotInFlightError(appservice_id, txn_id)
        await orders.go_on(conn, appservice_id)
        await admin_audit.write(
            conn,
            by,
            "retry",
            appservice_id=appservice_id,
            subjects=[txn_id],
            outcome="rest ended, to be buried",
        )
        return standing


async def pause(database: Database, appservice_id: str, *, by: Author) -> Standing:
    """Let a lane send nothing more until it is resumed; returns how it stood before.

    Raises:
        UnknownAppserviceError: as it says.
    """
    async with database.transaction() as conn:
        standing = await _standing(conn, appservice_id)
        await orders.pause(conn, appservice_id)
        outcome = "paused" if standing.paused_at is None else "was paused already"
        await admin_audit.write(conn, by, "pause", appservice_id=appservice_id, outcome=outcome)
        return standing


async def resume(database: Database, appservice_id: str, *, by: Author) -> Standing:
    """Let a lane that is paused go on, at once; returns how it stood before.

    Raises:
        UnknownAppserviceError: as it says.
    """
    async with database.transaction() as conn:
        standing = await _standing(conn, appservice_id)
        await orders.resume(conn, appservice_id)
        await orders.go_on(conn, appservice_id)
        outcome = "rest ended" if standing.paused_at is None else "resumed"
        await admin_audit.write(conn, by, "resume", appservice_id=appservice_id, outcome=outcome)
        return standing


async def answered(database: Database, appservice_id: str, *, by: Author) -> None:
    """An appservice took a ping: send it at once what it is owed, if it is owed anything."""
    async with database.transaction() as conn:
        await orders.go_on(conn, appservice_id)
        await admin_audit.write(
            conn, by, "ping", appservice_id=appservice_id, outcome="answered, rest ended"
        )


async def transactions(database: Database, appservice_id: str) -> Owed:
    """What is sealed for an appservice.

    Raises:
        UnknownAppserviceError: as it says.
    """
    async with database.transaction() as conn:
        last = await owed.last(conn, appservice_id)
        if last is None:
            raise UnknownAppserviceError(appservice_id, await orders.known(conn))
        return Owed(transactions=await owed.owed(conn, appservice_id), last=last)


async def dead_letters(
    database: Database, appservice_id: str | None, *, most: int
) -> tuple[list[Letter], int]:
    """The newest letters of an appservice, or of all and of nobody; and how many there are.

    Raises:
        UnknownAppserviceError: it has neither a lane nor letters.
    """
    async with database.transaction() as conn:
        found, total = await letters.newest(conn, appservice_id, most=most)
        if not total and appservice_id is not None:
            await _require_known(conn, appservice_id)
        return found, total


async def find(database: Database, beginnings: Iterable[str]) -> list[Letter]:
    """The letters whose ids begin so, each once, in the order in which they were buried.

    Raises:
        NoDeadLetterError, AmbiguousDeadLetterError: as they say.
    """
    async with database.transaction() as conn:
        found = [await letters.find(conn, beginning) for beginning in beginnings]
    return sorted(set(found), key=lambda one: (one.buried_at, one.dead_letter_id))


async def named(database: Database, ids: Sequence[UUID]) -> list[Letter]:
    """The letters with these ids that there are, in the order in which they were buried."""
    async with database.transaction() as conn:
        return await letters.named(conn, ids)


async def all_of(database: Database, appservice_id: str) -> list[UUID]:
    """All letters of an appservice, in the order in which they were buried.

    Raises:
        UnknownAppserviceError: it has neither a lane nor letters.
    """
    async with database.transaction() as conn:
        found = await letters.ids(conn, appservice_id)
        if not found:
            await _require_known(conn, appservice_id)
        return found


async def redrive(
    database: Database,
    appservice_id: str,
    ids: Sequence[UUID],
    *,
    by: Author,
    tell: Tell = nobody,
) -> set[UUID]:
    """Put letters of one appservice back; returns which. See `redriving.redrive`.

    Dying between two batches leaves the rest as it was.
    """
    change = _Change(action="redrive", outcome="redriven", run=redriving.redrive)
    return await _in_batches(database, change, appservice_id, ids, by, tell)


async def discard(
    database: Database,
    appservice_id: str,
    ids: Sequence[UUID],
    *,
    by: Author,
    tell: Tell = nobody,
) -> set[UUID]:
    """Delete letters of one appservice for good; returns which were there.

    Dying between two batches leaves the rest as it was.
    """
    change = _Change(action="discard", outcome="discarded", run=letters.discard)
    return await _in_batches(database, change, appservice_id, ids, by, tell)


def by_appservice(found: Iterable[Letter]) -> dict[str, list[UUID]]:
    """The ids of letters by appservice; their order stays."""
    ordered = sorted(found, key=lambda one: one.appservice_id)
    groups = groupby(ordered, key=lambda one: one.appservice_id)
    return {appservice_id: [one.dead_letter_id for one in group] for appservice_id, group in groups}


def why_not(letter: Letter) -> str:
    """Why a letter that was found was not put back."""
    if letter.redrivable:
        return "its device is being deleted, or it was redriven or discarded at this moment"
    return f"there is nothing in it that could be sent: {letter.reason}"


async def _in_batches(
    database: Database,
    change: _Change,
    appservice_id: str,
    ids: Sequence[UUID],
    by: Author,
    tell: Tell,
) -> set[UUID]:
    done: set[UUID] = set()
    for start in range(0, len(ids), BATCH):
        async with database.transaction() as conn:
            changed = await change.run(conn, appservice_id, ids[start : start + BATCH])
            if changed:
                await admin_audit.write(
                    conn,
                    by,
                    change.action,
                    appservice_id=appservice_id,
                    subjects=sorted(map(str, changed)),
                    outcome=f"{len(changed)} {change.outcome}",
                )
        done |= changed
        tell(min(start + BATCH, len(ids)), len(ids))
    return done


async def _first(
    conn: Connection, appservice_id: str, standing: Standing
) -> OwedTransaction | None:
    """The transaction in flight, of a lane that is not paused."""
    if standing.paused_at is not None:
        raise PausedError(appservice_id, standing)
    return next(iter(await owed.owed(conn, appservice_id)), None)


def _alone(appservice_id: str, one: OwedTransaction) -> OwedTransaction:
    if one.things != 1:
        raise SeveralInFlightError(appservice_id, one)
    return one


async def _standing(conn: Connection, appservice_id: str) -> Standing:
    standing = await orders.look(conn, appservice_id)
    if standing is None:
        raise UnknownAppserviceError(appservice_id, await orders.known(conn))
    return standing


async def _require_known(conn: Connection, appservice_id: str) -> None:
    known = await orders.known(conn)
    if appservice_id not in known:
        raise UnknownAppserviceError(appservice_id, known)
