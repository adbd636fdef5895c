"""What an operator is told of a lane."""

from uuid import uuid4

from appservice_bridge.domain.lane_state import LaneState
from appservice_bridge.domain.transport import Transport
from appservice_bridge.storage import connected, leases, overview, registrations
from appservice_bridge.storage.database import connect


async def test_a_lane_of_no_registration_is_told_from_one_that_is_going_live(
    database: str,
) -> None:
    conn = await connect(database)
    for appservice_id in ("gone", "live", "new"):
        await registrations.announce(conn, appservice_id, b"", epoch="test")
    await registrations.go_live(conn, ["gone", "live"])
    await registrations.withdraw_others(conn, ["live", "new"])
    seen = {lane.appservice_id: lane.state for lane in await overview.lanes(conn)}
    await conn.close()
    assert seen == {
        "gone": LaneState.UNREGISTERED,
        "live": LaneState.UNSERVED,
        "new": LaneState.GOING_LIVE,
    }


async def test_a_paused_lane_is_told_from_one_that_fails_and_has_no_work(database: str) -> None:
    conn = await connect(database)
    worker_id = uuid4()
    for appservice_id in ("failing", "paused"):
        await registrations.announce(conn, appservice_id, b"", epoch="test")
    await registrations.go_live(conn, ["failing", "paused"])
    await leases.renew(conn, worker_id, name="test", lease_seconds=60)
    await leases.claim(conn, worker_id, ["failing", "paused"], most=2)
    await conn.execute("update outbox_head set position = 1")
    await conn.execute("update lane set failed_attempts = 1")
    await conn.execute("update lane set paused_at = now() where appservice_id = 'paused'")
    seen = {lane.appservice_id: lane.state for lane in await overview.lanes(conn)}
    due = await leases.lanes_with_work(conn, worker_id)
    await conn.close()
    assert seen == {"failing": LaneState.FAILING, "paused": LaneState.PAUSED}
    assert due == ["failing"]


async def test_a_lane_whose_appservice_is_away_is_told_from_one_that_no_worker_serves(
    database: str,
) -> None:
    transports = {
        "asking": Transport.POLL,
        "away": Transport.WEBSOCKET,
        "here": Transport.WEBSOCKET,
        "silent": Transport.POLL,
        "unserved": Transport.HTTP,
    }
    conn, worker = await connect(database), uuid4()
    for appservice_id in transports:
        await registrations.announce(conn, appservice_id, b"", epoch="test")
    await registrations.go_live(conn, list(transports))
    await leases.renew(conn, worker, name="a worker", lease_seconds=60)
    for appservice_id in ("asking", "here", "silent"):
        await connected.take(conn, worker, appservice_id, asked=True)
    await conn.execute(
        "update lane set last_attempt_at = clock_timestamp() - interval '3 minutes'"
        " where appservice_id = any($1)",
        ["here", "silent"],
    )
    seen = {one.appservice_id: one.state for one in await overview.lanes(conn, transports)}
    await conn.close()
    assert seen == {
        "asking": LaneState.IDLE,
        "away": LaneState.DISCONNECTED,
        "here": LaneState.IDLE,
        "silent": LaneState.DISCONNECTED,
        "unserved": LaneState.UNSERVED,
    }
