"""Facts, intake, seals, acks, purges and crashes in any order: all comes once, in order, unaltered.

A crash cuts the connection and ends what ran, before any statement of ours or after a commit whose
answer is then lost; what was only in memory is forgotten. The appservice remembers its last
transaction id alone, as some libraries do.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar
from uuid import uuid4

import asyncpg
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from appservice_bridge.delivery import sealing
from appservice_bridge.delivery.purge import purge_once
from appservice_bridge.domain.policy import DeliveryPolicy
from appservice_bridge.routing.announcing import announce, go_live
from appservice_bridge.routing.intake import Intake
from appservice_bridge.storage import lanes, leases
from appservice_bridge.storage.database import (
    Connection,
    Database,
    DatabaseUnavailableError,
)
from appservice_bridge.storage.leases import Lease
from appservice_bridge.storage.sealed import Sealed
from tests.support.facts import capture, relay
from tests.support.intake import nobody, registered

T = TypeVar("T")
POLICY: Final = DeliveryPolicy(max_items=3)
EVERY: Final = ("a", "b", "c")
STATEMENTS: Final = ("execute", "fetch", "fetchrow", "fetchval")
TABLES: Final = """
select string_agg(format('appservice_bridge.%I', tablename), ', ') from pg_tables
 where schemaname = 'appservice_bridge'
   and tablename in ('capture_log', 'taken', 'appservice', 'relayed', 'seen_event', 'outbox',
                     'outbox_head', 'lane', 'worker', 'sealed', 'ledger', 'intake_gap',
                     'device_list_update', 'device_key_state', 'dead_letter', 'foreign_user')
"""
BEGIN_AGAIN: Final = """
update appservice_bridge.intake_gate
   set head = nextval('appservice_bridge.capture_seq'), registrations_digest = null
"""


class Crash(Exception):  # noqa: N818 - it is no error of the bridge
    """The process is dead."""


class Fused:
    """A connection that dies before its n-th statement."""

    def __init__(self, conn: Connection, before: "CrashingDatabase") -> None:
        self._conn = conn
        self._before = before

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._conn, name)
        return (
            self._counted(found) if name in ("execute", "fetch", "fetchrow", "fetchval") else found
        )

    def _counted(self, call: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        async def counted(*arguments: Any, **options: Any) -> T:
            if self._before.burns():
                self._conn.terminate()
                raise Crash
            return await call(*arguments, **options)

        return counted


class CrashingDatabase(Database):
    """A database whose user dies when the fuse is burnt; none is lit: it never does."""

    fuse: int | None = None

    def burns(self) -> bool:
        if self.fuse is None:
            return False
        self.fuse -= 1
        return self.fuse < 0

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        async with super().transaction() as conn:
            yield Fused(conn, self)  # type: ignore[misc]
        if self.burns():  # it is committed, and nobody heard
            raise Crash

    @asynccontextmanager
    async def statement(self) -> AsyncIterator[Connection]:
        async with super().statement() as conn:
            yield Fused(conn, self)  # type: ignore[misc]
        if self.burns():  # as above
            raise Crash


class Delivery(RuleBasedStateMachine):
    """What was sent to whom, and what each appservice made of it."""

    dsn: str

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.expected: dict[str, list[str]] = defaultdict(list)
        self.got: dict[str, list[str]] = defaultdict(list)
        self.last_txn: dict[str, str] = {}
        self.bodies: dict[tuple[str, str], bytes] = {}
        self.leases: dict[str, Lease] = {}
        self.number = 0
        self.appservices: tuple[str, ...] = EVERY[:2]
        self._do(self._open())

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        try:
            self.database.fuse = None
            self._do(self._drain())
            assert self.got == self.expected
        finally:
            self._do(self.opened.__aexit__(None, None, None))
            self._do(self.pg.close())
            self.runner.close()

    @invariant()
    def what_came_is_the_beginning_of_what_was_sent(self) -> None:
        for name, items in getattr(self, "got", {}).items():
            assert items == self.expected[name][: len(items)]

    @rule(name=st.sampled_from(EVERY), many=st.integers(1, 5))
    def facts_come(self, name: str, many: int) -> None:
        if name not in self.appservices:
            return
        for _ in range(many):
            self.number += 1
            if self.number % 3:
                self._do(capture(self.pg, f"@{name}_1:example.org", self.number))
            else:
                self._do(relay(self.pg, name, f"${self.number}"))
            self.expected[name].append(str(self.number))

    @rule()
    def a_fact_is_rolled_back_and_leaves_a_gap(self) -> None:
        self._do(self.pg.execute("begin"))
        self._do(capture(self.pg, "@a_1:example.org", 1_000_000 + self.number))
        self._do(self.pg.execute("rollback"))

    @precondition(lambda self: len(self.appservices) < len(EVERY))
    @rule()
    def one_more_appservice_is_registered(self) -> None:
        self.appservices = EVERY
        self._do(self._announce())

    @rule(fuse=st.none() | st.integers(0, 30))
    def intake_passes(self, fuse: int | None) -> None:
        self._until_crash(fuse, self.intake.consume_once)

    @rule(
        name=st.sampled_from(EVERY),
        fuse=st.none() | st.integers(0, 25),
        taken=st.booleans(),
        heard=st.booleans(),
    )
    def a_lane_attempts(self, name: str, fuse: int | None, taken: bool, heard: bool) -> None:
        if name in self.appservices:
            self._until_crash(fuse, lambda: self._attempt(name, taken=taken, heard=heard))

    @rule(name=st.sampled_from(EVERY))
    def another_worker_takes_the_lane(self, name: str) -> None:
        self.leases.pop(name, None)

    @rule(fuse=st.none() | st.integers(0, 6))
    def purge_passes(self, fuse: int | None) -> None:
        self._until_crash(fuse, lambda: purge_once(self.database, asyncio.Event()))

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def _until_crash(self, fuse: int | None, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self.database.fuse = fuse
        try:
            self._do(work())
        except (Crash, DatabaseUnavailableError):  # the rollback on a cut connection failed
            assert fuse is not None
            self.leases.clear()
            self.intake = Intake(self.database, self.owners, nobody)
        finally:
            self.database.fuse = None

    async def _open(self) -> None:
        self.pg = await asyncpg.connect(self.dsn)
        await self.pg.execute(f"truncate {await self.pg.fetchval(TABLES)}")
        await self.pg.execute(BEGIN_AGAIN)
        self.opened = CrashingDatabase.open(self.dsn, max_connections=2)
        self.database = await self.opened.__aenter__()
        await self._announce()

    async def _announce(self) -> None:
        self.owners = registered(*((name, f"@{name}_.*") for name in self.appservices))
        waiting = await announce(self.database, self.owners, epoch="test")
        await go_live(self.database, waiting)
        self.intake = Intake(self.database, self.owners, nobody)

    async def _attempt(self, name: str, *, taken: bool = True, heard: bool = True) -> bool:
        """Send what is owed, once; False if nothing is."""
        lease = await self._lease(name)
        async with self.database.transaction() as conn:
            state = await lanes.hold(conn, lease)
            owed = await sealing.owed(conn, lease, POLICY, state)
        if owed is None:
            return False
        self._receive(name, owed, taken=taken)
        if taken and heard:
            async with self.database.transaction() as conn:
                await sealing.ack_and_seal_next(conn, lease, POLICY, owed, status=200)
        return True

    async def _lease(self, name: str) -> Lease:
        if name not in self.leases:
            worker_id = uuid4()  # one that is not known to be alive: its lanes are free
            async with self.database.transaction() as conn:
                (self.leases[name],) = await leases.claim(conn, worker_id, [name], most=1)
        return self.leases[name]

    def _receive(self, name: str, owed: Sealed, *, taken: bool) -> None:
        known = self.bodies.setdefault((name, owed.txn_id), owed.body)
        assert known == owed.body, "a sealed transaction changed"
        if not taken or self.last_txn.get(name) == owed.txn_id:
            return
        self.last_txn[name] = owed.txn_id
        self.got[name] += _numbers(owed.body)

    async def _drain(self) -> None:
        while not (await self.intake.consume_once(sweep=True)).done:
            pass
        for name in self.appservices:
            self.leases.pop(name, None)
            while await self._attempt(name):
                pass


def _numbers(body: bytes) -> list[str]:
    """In the order of the items; a transaction holds events apart from messages."""
    told = json.loads(body)
    events = [event["event_id"][1:] for event in told["events"]]
    messages = [str(one["content"]["n"]) for one in told.get("de.sorunome.msc2409.to_device", [])]
    return sorted(events + messages, key=int)


def test_nothing_is_lost_doubled_reordered_or_altered_whatever_happens_when(database: str) -> None:
    machine = type("OnDatabase", (Delivery,), {"dsn": database})
    run_machine(
        machine,
        settings=settings(
            max_examples=8,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
