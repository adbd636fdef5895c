"""A worker that dies at its commits, or breaks a promise on purpose; it runs as `run` does.

`python -m tests.faults.dying --config FILE`, told by the environment:

    FAULTS_DIE   a kind of commit, `before` or `after`, and at the how many-th: "Lane._ack after 3"
    FAULTS_LIST  a file that grows by the name of each kind of commit, the first time it is seen
    FAULTS_BREAK one of BREAKS

A kind of commit is named after the function that opens the DB transaction, or has a single
statement that is one. Before the commit of a statement is while Postgres is at it.
"""

import asyncio
import os
import random
import re
import signal
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg

from appservice_bridge.cli.main import app
from appservice_bridge.delivery.http_sender import HttpSender
from appservice_bridge.domain.outcome import Acked, Outcome
from appservice_bridge.storage.database import Connection, Database

NOT_A_CALLER: Final = ("contextlib", "asyncpg", "appservice_bridge.storage", __name__)
WRITES: Final = re.compile(
    r"^\s*(insert|update|delete|with)\b.*\b(insert|update|delete)\b", re.DOTALL
)
MOST_SECONDS: Final = 0.004  # of a statement, before it is died in
_sending: set[asyncio.Task[Outcome]] = set()


def caller() -> str:
    """The function of the bridge that opens a DB transaction, or whose statement is one."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].startswith(NOT_A_CALLER):
        frame = frame.f_back
    module = frame.f_globals["__name__"].removeprefix("appservice_bridge.")
    return f"{module}.{frame.f_code.co_qualname.rpartition('.')[2]}"


class Commits:
    """Counts the commits of each kind, writes down which kinds there are, and dies at one."""

    def __init__(self, *, die: str, seen: Path | None) -> None:
        self._where, self._when, nth = die.split() if die else ("", "", "0")
        self._nth = int(nth)
        self._seen = seen
        self._counted: Counter[str] = Counter()

    def count(self, kind: str) -> None:
        self._counted[kind] += 1
        if self._seen is not None and self._counted[kind] == 1:
            with self._seen.open("a") as file:
                file.write(kind + "\n")

    def ends_at(self, kind: str, when: str) -> bool:
        return (kind, when, self._counted[kind]) == (self._where, self._when, self._nth)

    def die_at(self, kind: str, when: str) -> None:
        if self.ends_at(kind, when):
            die()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def watch_transactions(commits: Commits) -> None:
    original = Database.transaction

    @asynccontextmanager
    async def transaction(self: Database) -> AsyncIterator[Connection]:
        kind = caller()
        async with original(self) as conn:
            yield conn
            commits.count(kind)
            commits.die_at(kind, "before")
        commits.die_at(kind, "after")

    Database.transaction = transaction  # type: ignore[method-assign]


def watch_statements(commits: Commits) -> None:
    """Those that write, and are in no DB transaction but their own."""
    original = asyncpg.Connection._execute  # type: ignore[attr-defined]  # all end in it

    async def execute(self: asyncpg.Connection, query: str, *more: Any, **options: Any) -> Any:
        if self.is_in_transaction() or not WRITES.match(without_comments(query)):
            return await original(self, query, *more, **options)
        kind = caller()
        commits.count(kind)
        answer = asyncio.create_task(original(self, query, *more, **options))
        if commits.ends_at(kind, "before"):
            await asyncio.wait({answer}, timeout=random.uniform(0, MOST_SECONDS))
            die()
        answered = await answer
        commits.die_at(kind, "after")
        return answered

    asyncpg.Connection._execute = execute  # type: ignore[attr-defined]


def without_comments(query: str) -> str:
    return "\n".join(line for line in query.splitlines() if not line.startswith("--"))


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
    commits = Commits(die=os.environ.get("FAULTS_DIE", ""), seen=Path(seen) if seen else None)
    watch_transactions(commits)
    watch_statements(commits)
    if broken := os.environ.get("FAULTS_BREAK"):
        HttpSender.send = BREAKS[broken](HttpSender.send)  # type: ignore[method-assign]
    app(["run", *sys.argv[1:]])


if __name__ == "__main__":
    main()
