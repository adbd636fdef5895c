"""A worker that dies at its commits, or breaks a promise on purpose; it runs as `run` does.

`python -m tests.faults.dying --config FILE`, told by the environment:

    FAULTS_DIE   a kind of commit, `before` or `after`, and at the how many-th: "Lane._ack after 3"
    FAULTS_LIST  a file that grows by the name of each kind of commit, the first time it is seen
    FAULTS_BREAK one of BREAKS

A kind of commit is named after the function that opens the DB transaction.
"""

import asyncio
import os
import random
import signal
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from appservice_bridge.cli.main import app
from appservice_bridge.delivery.http_sender import HttpSender
from appservice_bridge.domain.outcome import Acked, Outcome
from appservice_bridge.storage.database import Connection, Database

NOT_A_CALLER: Final = ("contextlib", "appservice_bridge.storage.database", __name__)
_sending: set[asyncio.Task[Outcome]] = set()


def caller() -> str:
    """The function of the bridge that opens a DB transaction."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"] in NOT_A_CALLER:
        frame = frame.f_back
    module = frame.f_globals["__name__"].removeprefix("appservice_bridge.")
    return f"{module}.{frame.f_code.co_qualname.rpartition('.')[2]}"


def watch_commits(*, die: str, seen: Path | None) -> None:
    """Die at a commit, and write down which kinds there are."""
    where, when, nth = die.split() if die else ("", "", "0")
    counted: Counter[str] = Counter()
    original = Database.transaction

    def reached(kind: str, point: str) -> None:
        if kind == where and point == when and counted[kind] == int(nth):
            os.kill(os.getpid(), signal.SIGKILL)

    @asynccontextmanager
    async def transaction(self: Database) -> AsyncIterator[Connection]:
        kind = caller()
        async with original(self) as conn:
            yield conn
            counted[kind] += 1
            if seen is not None and counted[kind] == 1:
                with seen.open("a") as file:
                    file.write(kind + "\n")
            reached(kind, "before")
        reached(kind, "after")

    Database.transaction = transaction  # type: ignore[method-assign]


def ack_first(send: Callable[..., Any]) -> Callable[..., Any]:
    """Every transaction counts as taken before it is sent."""

    async def broken(self: HttpSender, txn_id: str, body: bytes, *, now: float) -> Outcome:
        _sending.add(asyncio.create_task(send(self, txn_id, body, now=now)))
        return Acked(status=200)

    return broken


def new_id(send: Callable[..., Any]) -> Callable[..., Any]:
    """Every attempt has an id of its own."""

    async def broken(self: HttpSender, _txn_id: str, body: bytes, *, now: float) -> Outcome:
        return await send(self, uuid.uuid4().hex, body, now=now)  # type: ignore[no-any-return]

    return broken


def new_bytes(send: Callable[..., Any]) -> Callable[..., Any]:
    """Every attempt has other bytes."""

    async def broken(self: HttpSender, txn_id: str, body: bytes, *, now: float) -> Outcome:
        padded = body + b" " * random.randrange(1000)
        return await send(self, txn_id, padded, now=now)  # type: ignore[no-any-return]

    return broken


def late(send: Callable[..., Any]) -> Callable[..., Any]:
    """Some transactions are sent after those that follow."""

    async def broken(self: HttpSender, txn_id: str, body: bytes, *, now: float) -> Outcome:
        if int(txn_id.rpartition("-")[2]) % 3:
            return await send(self, txn_id, body, now=now)  # type: ignore[no-any-return]

        async def later() -> Outcome:
            await asyncio.sleep(2)
            return await send(self, txn_id, body, now=now)  # type: ignore[no-any-return]

        _sending.add(asyncio.create_task(later()))
        return Acked(status=200)

    return broken


BREAKS: Final = {"ack-first": ack_first, "new-id": new_id, "new-bytes": new_bytes, "late": late}


def main() -> None:
    seen = os.environ.get("FAULTS_LIST")
    watch_commits(die=os.environ.get("FAULTS_DIE", ""), seen=Path(seen) if seen else None)
    if broken := os.environ.get("FAULTS_BREAK"):
        HttpSender.send = BREAKS[broken](HttpSender.send)  # type: ignore[method-assign]
    app(["run", *sys.argv[1:]])


if __name__ == "__main__":
    main()
