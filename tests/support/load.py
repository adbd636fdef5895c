"""Load on a homeserver: who sends what to whom, and what came of it on the other side."""

import asyncio
import json
import random
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.support.homeserver import Account

KIND: Final = "m.load"
TRIES: Final = 20
PAYLOAD: Final = "x" * 900  # with its frame about 1 KB, as an Olm message has


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run sends.

    Attributes:
        run: name of the run; it is in every message.
        senders: each sends its next message when the last one was answered.
        recipients: taken in turn.
        every_seconds: how often each sender sends, give or take a quarter; 0: as fast as it can.
        insist: send again what was not accepted; else go on with the next one.
    """

    run: str
    url: str
    senders: Sequence[Account]
    recipients: Sequence[Account]
    messages: int
    every_seconds: float = 0.0
    insist: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One message that the homeserver answered with 200."""

    sender: str
    number: int

    @property
    def name(self) -> tuple[str, int]:
        return self.sender, self.number


async def send_all(plan: Plan) -> list[Sent]:
    """Send the plan's messages, one per request; returns them in the order of the answers."""
    sent: list[Sent] = []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as http, asyncio.TaskGroup() as group:
        for place in range(len(plan.senders)):
            group.create_task(_send_own(plan, place, http, sent))
    return sent


async def _send_own(plan: Plan, place: int, http: aiohttp.ClientSession, sent: list[Sent]) -> None:
    """One sender's share: every n-th message."""
    sender, clock = plan.senders[place], asyncio.get_running_loop().time
    shake = random.Random(f"{plan.run} {place}")
    due = clock() + shake.uniform(0, plan.every_seconds)
    for turn, number in enumerate(range(place, plan.messages, len(plan.senders))):
        if plan.every_seconds:
            jitter = shake.uniform(-0.25, 0.25) * plan.every_seconds
            await asyncio.sleep(due + turn * plan.every_seconds + jitter - clock())
        recipient = plan.recipients[number % len(plan.recipients)]
        content = {"run": plan.run, "number": number, "payload": PAYLOAD}
        messages = {"messages": {recipient.user_id: {recipient.device_id: content}}}
        if await _put(plan, http, sender, messages):
            sent.append(Sent(sender=sender.user_id, number=number))


async def _put(
    plan: Plan, http: aiohttp.ClientSession, sender: Account, messages: dict[str, Any]
) -> bool:
    """Send one request until it is answered 200; the homeserver knows a repeat by its id."""
    path = f"{plan.url}/_matrix/client/v3/sendToDevice/{KIND}/{uuid.uuid4().hex}"
    headers = {"Authorization": f"Bearer {sender.token}"}
    for attempt in range(TRIES):
        await asyncio.sleep(0.1 * attempt)
        async with http.put(path, json=messages, headers=headers) as response:
            answer = await response.read()
            if response.status == 200 or not plan.insist:
                return response.status == 200
    raise RuntimeError(f"not accepted after {TRIES} tries: {answer[:200]!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What the receiver wrote down: a request as it came, or the answer before it was given.

    Attributes:
        status: None for a request that came; else its answer.
        messages: run, sender and number of each message in a request that came.
    """

    at_ns: int
    txn_id: str
    digest: str
    status: int | None
    messages: tuple[tuple[str, str, int], ...] = ()

    @property
    def place(self) -> tuple[str, int]:
        """Epoch and number of a transaction of the bridge."""
        epoch, _, number = self.txn_id.partition("-")
        return epoch, int(number)


def read_log(path: Path) -> list[Received]:
    """Everything the receiver wrote; half a line, its last words when it was killed, is none."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_received(json.loads(line)) for line in lines]


def _received(raw: dict[str, Any]) -> Received:
    raw["messages"] = tuple((run, sender, number) for run, sender, number in raw["messages"])
    return Received(**raw)


def taken(log: Iterable[Received]) -> Iterator[Received]:
    """Requests whose transaction was answered 200 at some time, each transaction id once."""
    log = list(log)
    answered = {each.txn_id for each in log if each.status == 200}
    for each in log:
        if each.status is None and each.txn_id in answered:
            answered.discard(each.txn_id)
            yield each


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of a run.

    Attributes:
        lost: accepted by the homeserver, and in no transaction that was answered 200.
        doubled: in two transactions.
        overtaken: came before an earlier message of the same sender.
        unknown: came, and was not sent.
    """

    lost: tuple[tuple[str, int], ...]
    doubled: tuple[tuple[str, int], ...]
    overtaken: tuple[tuple[str, int], ...]
    unknown: tuple[tuple[str, int], ...]

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.overtaken or self.unknown)


def judge(run: str, sent: Iterable[Sent], log: Iterable[Received]) -> Verdict:
    """Compare what the homeserver accepted with what the receiver wrote down."""
    accepted = {each.name for each in sent}
    seen: set[tuple[str, int]] = set()
    doubled, overtaken = [], []
    highest: dict[str, int] = {}
    for name in messages_of(run, log):
        if name in seen:
            doubled.append(name)
        elif name[1] < highest.get(name[0], -1):
            overtaken.append(name)
        seen.add(name)
        highest[name[0]] = max(name[1], highest.get(name[0], -1))
    return Verdict(
        lost=tuple(sorted(accepted - seen)),
        doubled=tuple(doubled),
        overtaken=tuple(overtaken),
        unknown=tuple(sorted(seen - accepted)),
    )


def messages_of(run: str, log: Iterable[Received]) -> Iterator[tuple[str, int]]:
    """Sender and number of each message of a run, in the order in which it was delivered."""
    for request in taken(log):
        for of, sender, number in request.messages:
            if of == run:
                yield sender, number


def breaches(log: Sequence[Received]) -> list[str]:
    """Where a transaction changed, came before its predecessor was taken, or left a number out."""
    found = []
    digests: dict[str, str] = {}
    acknowledged: tuple[str, int] | None = None
    for each in log:
        if each.status is not None:
            if each.status == 200:
                acknowledged = each.place
            continue
        if digests.setdefault(each.txn_id, each.digest) != each.digest:
            found.append(f"{each.txn_id} has other bytes than before")
        if acknowledged is None or each.place[0] != acknowledged[0]:
            continue
        if each.place[1] not in (acknowledged[1], acknowledged[1] + 1):
            found.append(f"{each.txn_id} came when {acknowledged[1]} was the last one taken")
    return found


@asynccontextmanager
async def sending(plan: Plan) -> AsyncIterator["asyncio.Task[list[Sent]]"]:
    """Send while the block runs; the block must await the task."""
    task = asyncio.create_task(send_all(plan))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
