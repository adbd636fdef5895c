"""A lease that runs out stops the worker that held it, and what it may still repeat is the same."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from appservice_bridge.delivery.bodies import Bodies
from appservice_bridge.delivery.group_commit import GroupCommit
from appservice_bridge.delivery.lane import Lane, Shared
from appservice_bridge.delivery.lease_clock import LeaseClock
from appservice_bridge.domain.outcome import Acked, Unreachable
from appservice_bridge.domain.policy import DeliveryPolicy
from appservice_bridge.routing.intake import Intake
from appservice_bridge.storage import leases
from appservice_bridge.storage.database import Database
from tests.support.appservice import appservice
from tests.support.bridge import registration, worker, worker_process, write_files
from tests.support.facts import Connection, capture, wait_until
from tests.support.refusing import always

BOT = "@b_1:example.org"


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_no_request_begins_after_the_lease_ran_out() -> None:
    clock = LeaseClock()
    clock.extend(now() - 0.001)
    assert not clock.holds
    with pytest.raises(TimeoutError):
        async with clock.guard():
            pytest.fail("the first byte would have been written")


async def test_a_request_in_flight_is_cut_when_the_lease_is_not_renewed() -> None:
    clock = LeaseClock()
    clock.extend(now() + 0.1)
    with pytest.raises(TimeoutError):
        async with clock.guard():
            await asyncio.sleep(5)


async def test_a_request_in_flight_goes_on_when_the_lease_is_renewed() -> None:
    clock = LeaseClock()
    clock.extend(now() + 1)
    async with clock.guard():
        clock.extend(now() + 60)
        await asyncio.sleep(1.2)
    assert clock.holds


async def test_a_worker_frozen_past_its_lease_repeats_at_most_what_it_was_sending(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        ours = [registration("bot", bot.url, users=["@b_.*"])]
        first, second = (write_files(tmp_path / name, database, ours) for name in ("a", "b"))
        async with worker_process(first) as frozen:
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.to_device) == 1)
            bot.delay_seconds = 0.5
            await capture(pg, BOT, 2)
            await bot.until(lambda: len(bot.requests) == 2)
            assert frozen.process is not None
            frozen.process.send_signal(signal.SIGSTOP)
            bot.delay_seconds = 0
            async with worker_process(second):
                await capture(pg, BOT, 3)
                await bot.until(lambda: len(bot.to_device) == 3)
                frozen.process.send_signal(signal.SIGCONT)
                await capture(pg, BOT, 4)
                await bot.until(lambda: len(bot.to_device) == 4)
                await asyncio.sleep(1)  # whatever the one that was frozen still has to say
    assert [item["content"]["n"] for item in bot.to_device] == [1, 2, 3, 4]
    bodies = {(request.txn_id, request.body) for request in bot.requests}
    assert len(bodies) == len({request.txn_id for request in bot.requests})
    assert await pg.fetchval("select acked_to from appservice_bridge.lane") == 4


async def test_a_worker_whose_lease_was_taken_cannot_write(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with worker(files):
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.to_device) == 1)
            bot.open.clear()
            await capture(pg, BOT, 2)
            await bot.until(lambda: len(bot.requests) == 2)
            await pg.execute(
                "update appservice_bridge.lane set lease_token = lease_token + 1, worker_id = $1",
                "00000000-0000-0000-0000-000000000001",
            )
            await pg.execute(
                "insert into appservice_bridge.worker (worker_id, name, alive_until)"
                " values ('00000000-0000-0000-0000-000000000001', 'other', now() + '1 min')"
            )
            bot.open.set()
            await bot.until(lambda: len(bot.taken) == 2)
            await capture(pg, BOT, 3)
            with pytest.raises(TimeoutError):
                await bot.until(lambda: len(bot.requests) > 2, within=1.5)
    assert await pg.fetchval("select acked_to from appservice_bridge.lane") == 1


async def test_an_idle_worker_hands_its_lanes_back_when_it_stops(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with worker(files):
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.to_device) == 1)
    assert await pg.fetchval("select worker_id from appservice_bridge.lane") is None
    assert await pg.fetchval("select count(*) from appservice_bridge.worker") == 0


async def test_a_lane_whose_claim_was_committed_unheard_is_claimed_again(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with worker(files) as one:
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.to_device) == 1)
            for task in one._lanes._serving:  # as if it had never heard that the lane is its own
                task.cancel()
            await capture(pg, BOT, 2)
            await bot.until(lambda: len(bot.to_device) == 2)


async def test_a_lane_that_ends_while_others_are_claimed_ends_nothing_else(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    hand_over = """
        with other as (
            insert into appservice_bridge.worker (worker_id, name, alive_until)
            values ('00000000-0000-0000-0000-000000000001', 'other', now() + interval '50 s')
            on conflict (worker_id) do update set alive_until = excluded.alive_until
            returning worker_id)
        update appservice_bridge.lane l set worker_id = o.worker_id, lease_token = lease_token + 1
          from other o where appservice_id = $1"""
    held = (
        "select count(*) from appservice_bridge.lane join appservice_bridge.worker w"
        " using (worker_id) where w.name <> 'other'"
    )
    locker = await asyncpg.connect(database)
    async with appservice() as bot:
        ours = [registration(id_, bot.url, users=[f"@{id_}_.*"]) for id_ in ("lost", "free")]
        async with worker(write_files(tmp_path, database, ours)):
            await wait_until(pg, f"select ({held}) = 2")
            await pg.execute(hand_over, "free")
            await asyncio.sleep(1.5)  # the worker looked, and serves it no more
            async with pg.transaction():
                await pg.execute("update appservice_bridge.lane set worker_id = null")
                await pg.execute(hand_over, "lost")
                claim = locker.execute(
                    "begin; select from appservice_bridge.lane"
                    " where appservice_id = 'free' for update"
                )
                locking = asyncio.create_task(claim)
                await asyncio.sleep(0.1)
            await locking
            await asyncio.sleep(1)  # the worker waits for that row, to claim it
            await capture(pg, "@lost_1:example.org", 1)
            await asyncio.sleep(1)  # and finds that the other is lost
            await locker.execute("rollback")
            await capture(pg, "@free_1:example.org", 2)
            await bot.until(lambda: len(bot.to_device) == 1)
    await locker.close()


async def test_a_worker_that_died_while_the_clock_was_ahead_is_dead_when_it_was_set_back(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with worker(files):
            pass
        await pg.execute(
            "with died as (insert into appservice_bridge.worker (worker_id, name, alive_until)"
            " values (gen_random_uuid(), 'other', now() + interval '2 hours') returning worker_id)"
            " update appservice_bridge.lane l set worker_id = died.worker_id from died"
        )
        async with worker(files):
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.to_device) == 1)


async def test_a_rest_that_began_while_the_clock_was_ahead_ends_at_the_ceiling(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with worker(files):
            pass
        rests = "update appservice_bridge.lane set due_at = now() + interval '2 hours'"
        await pg.execute(rests)
        async with worker(files):
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.to_device) == 1)


async def test_a_wake_while_the_clock_was_ahead_ends_no_rest_of_today(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        bot.answer = always(500)
        files = write_files(
            tmp_path,
            database,
            [registration("bot", bot.url, users=["@b_.*"])],
            delivery={"backoff": {"first_seconds": 300, "ceiling_seconds": 300}},
        )
        async with worker(files):
            woken = "update appservice_bridge.lane set woken_at = now() + interval '2 hours'"
            await pg.execute(woken)
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.requests) == 1)
            await asyncio.sleep(1.5)
    assert len(bot.requests) == 1


async def test_a_wake_early_in_an_attempt_is_heard_however_late_its_end_is_written(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        bot.answer = always(500)
        bot.open.clear()
        files = write_files(
            tmp_path,
            database,
            [registration("bot", bot.url, users=["@b_.*"])],
            delivery={"backoff": {"first_seconds": 300, "ceiling_seconds": 300}},
        )
        async with worker(files):
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.requests) == 1)
            async with pg.transaction():
                await pg.execute(
                    "update appservice_bridge.lane"
                    " set due_at = '-infinity', woken_at = clock_timestamp()"
                )
                early = time.monotonic() - bot.requests[0].began
                bot.open.set()
                await wait_until(pg, "select exists (select from pg_locks where not granted)")
                await asyncio.sleep(1 + 2 * early)
            await bot.until(lambda: len(bot.requests) == 2)


class _Unheard(Database):
    """Commits, whose answers come late."""

    heard: asyncio.Event
    committed: asyncio.Event

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        async with super().transaction() as conn:
            yield conn
        self.committed.set()
        await self.heard.wait()


class _Sent:
    """What was sent; all of it is taken."""

    def __init__(self) -> None:
        self.txn_ids: list[str] = []

    async def send(self, txn_id: str, _body: bytes, *, now: float) -> Acked:
        del now
        self.txn_ids.append(txn_id)
        return Acked(status=200)


async def leased_with_a_message(pg: Connection, db: Database, intake: Intake) -> leases.Lease:
    """The lane of `bot`, for one message that is not sealed yet."""
    await capture(pg, BOT, 1)
    await intake.consume_once()
    async with db.transaction() as conn:
        await leases.renew(conn, UUID(int=1), name="me", lease_seconds=60)
        (lease,) = await leases.claim(conn, UUID(int=1), ["bot"], most=1)
    return lease


async def test_what_was_sealed_under_a_lease_that_ran_out_unheard_is_not_sent_under_the_next(
    pg: Connection, database: str, db: Database, intake: Intake
) -> None:
    lease = await leased_with_a_message(pg, db, intake)
    clock, sender, stop = LeaseClock(), _Sent(), asyncio.Event()
    clock.extend(now() + 60)
    async with _Unheard.open(database) as slow:
        slow.heard, slow.committed = asyncio.Event(), asyncio.Event()
        serving = asyncio.create_task(
            Lane(
                slow,
                lease,
                DeliveryPolicy(),
                sender,
                clock,
                Shared(GroupCommit(slow), Bodies(), slow),
            ).serve(stop)
        )
        await slow.committed.wait()
        clock.extend(now() - 1)  # it ran out, and another worker has the lane
        await pg.execute("update appservice_bridge.lane set lease_token = lease_token + 1")
        clock.extend(now() + 60)
        slow.heard.set()
        await asyncio.wait_for(serving, 60)
    assert sender.txn_ids == []


class _Asked(Database):
    """Gives nobody a connection, and says that one was asked for."""

    by_whom: asyncio.Event

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        self.by_whom.set()
        await asyncio.Event().wait()
        yield


class _Away:
    """Nobody answers."""

    async def send(self, _txn_id: str, _body: bytes, *, now: float) -> Unreachable:
        del now
        return Unreachable(reason="timeout")


async def test_a_lane_that_fails_waits_for_other_connections_than_those_that_are_well(
    pg: Connection, database: str, db: Database, intake: Intake
) -> None:
    lease = await leased_with_a_message(pg, db, intake)
    clock, stop, of_well = LeaseClock(), asyncio.Event(), db.limited(1)
    clock.extend(now() + 60)
    async with _Asked.open(database) as failing:
        failing.by_whom = asyncio.Event()
        shared = Shared(GroupCommit(db), Bodies(), failing)
        lane = Lane(of_well, lease, DeliveryPolicy(), _Away(), clock, shared)
        serving = asyncio.create_task(lane.serve(stop))
        async with asyncio.timeout(60):
            await failing.by_whom.wait()
            async with of_well.transaction() as conn:
                assert await conn.fetchval("select count(*) from sealed") == 1
                assert await conn.fetchval("select failed_attempts from lane") == 0
        serving.cancel()


async def test_what_is_sealed_anew_does_not_wait_for_the_bodies_of_others(
    pg: Connection, db: Database, intake: Intake
) -> None:
    lease = await leased_with_a_message(pg, db, intake)
    clock, sender, stop = LeaseClock(), _Sent(), asyncio.Event()
    clock.extend(now() + 60)
    group, bodies = GroupCommit(db), Bodies(1)
    bodies.hold("others", 1_000_000)
    committing = asyncio.create_task(group.run())
    lane = Lane(db, lease, DeliveryPolicy(), sender, clock, Shared(group, bodies, db))
    serving = asyncio.create_task(lane.serve(stop))
    await wait_until(pg, "select acked_to = 1 from appservice_bridge.lane")
    stop.set()
    lane.look()
    await asyncio.wait_for(serving, 60)
    committing.cancel()
    assert len(sender.txn_ids) == 1
    assert bodies.total == 1_000_000
