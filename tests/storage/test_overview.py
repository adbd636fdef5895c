"""What an operator is told of a lane."""

from appservice_bridge.storage import overview, registrations
from appservice_bridge.storage.database import connect
from appservice_bridge.storage.overview import LaneCondition


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
        "gone": LaneCondition.UNREGISTERED,
        "live": LaneCondition.UNSERVED,
        "new": LaneCondition.GOING_LIVE,
    }
