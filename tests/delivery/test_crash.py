"""Postgres dies behind an ack: nobody waited for it to be durable, and the same is sent again."""

import os
import signal
from pathlib import Path
from uuid import UUID

import asyncpg

from appservice_bridge.delivery.building import build_ahead
from appservice_bridge.dev.postgres import EmbeddedPostgres
from appservice_bridge.domain.policy import DeliveryPolicy
from appservice_bridge.routing.announcing import announce, go_live
from appservice_bridge.routing.intake import Intake
from appservice_bridge.storage import lanes, leases, sealed, turns
from appservice_bridge.storage.database import Database
from appservice_bridge.storage.leases import Lease
from appservice_bridge.storage.migrations import migrate
from appservice_bridge.storage.sealed import Sealed
from appservice_bridge.storage.turns import Following, Turn
from tests.support.facts import capture
from tests.support.intake import nobody, registered

LATE = {"wal_writer_delay": "10s"}  # so what no commit waited for is lost for certain
POLICY = DeliveryPolicy()
ACKED_TO = "select acked_to from appservice_bridge.lane"


async def test_an_ack_that_a_crash_undid_is_asked_for_again_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    with EmbeddedPostgres(tmp_path / "postgres", settings=LATE) as server:
        async with Database.open(server.dsn()) as db:
            first = await delivered(server, db)
            os.kill(server.child.pid, signal.SIGKILL)
        server.start()
        async with Database.open(server.dsn()) as db:
            lease, again = await in_flight(db)
            assert (again.txn_id, again.body) == (first.txn_id, first.body)
            second = (await ahead(db, lease)).sealed
            await take(db, Turn(lease=lease, taken=again, following=await ahead(db, lease)))
            os.kill(server.child.pid, signal.SIGKILL)
        server.start()
        async with Database.open(server.dsn()) as db:
            _, kept = await in_flight(db)
            assert (kept.txn_id, kept.body) == (second.txn_id, second.body)


async def delivered(server: EmbeddedPostgres, db: Database) -> Sealed:
    """One transaction, sealed and acknowledged; another message waits."""
    pg = await asyncpg.connect(server.dsn())
    await migrate(pg)
    owners = registered(("bot", "@b_.*"))
    await go_live(db, await announce(db, owners, epoch="test"))
    intake = Intake(db, owners, nobody)
    await capture(pg, "@b_1:example.org", 1)
    await intake.consume_once()
    lease = await claimed(db)
    following = await ahead(db, lease)
    await take(db, Turn(lease=lease, following=following))
    await capture(pg, "@b_1:example.org", 2)
    await intake.consume_once()
    await pg.execute("checkpoint")
    await take(db, Turn(lease=lease, taken=following.sealed))
    assert await pg.fetchval(ACKED_TO) == 1
    pg.terminate()
    return following.sealed


async def claimed(db: Database) -> Lease:
    async with db.transaction() as conn:
        await leases.renew(conn, UUID(int=1), name="me", lease_seconds=60)
        (lease,) = await leases.claim(conn, UUID(int=1), ["bot"], most=1)
    return lease


async def ahead(db: Database, lease: Lease) -> Following:
    async with db.transaction() as conn:
        state = await lanes.hold(conn, lease)
    following = await build_ahead(db, "bot", lambda: POLICY, state.place)
    assert following is not None
    return following


async def take(db: Database, turn: Turn) -> None:
    async with db.statement() as conn:
        assert await turns.take(conn, [turn])


async def in_flight(db: Database) -> tuple[Lease, Sealed]:
    """By the lease that outlived the crash."""
    async with db.transaction() as conn:
        token = await conn.fetchval("select lease_token from lane")
        lease = Lease(appservice_id="bot", token=token)
        return lease, await sealed.in_flight(conn, lease)
