"""What is measured of the database: bounded, and by appservice."""

import json
from collections.abc import AsyncIterator

import pytest

from appservice_bridge.storage import device_updates, figures, registrations
from appservice_bridge.storage.database import Connection, connect
from appservice_bridge.storage.device_updates import DeviceKey, KeyChange
from tests.support.facts import make_synapse_tables

ITEM = """
insert into outbox (appservice_id, position, kind, captured_at, payload)
select $1, n, $2, now() - interval '1 hour', '{}' from generate_series($3::int, $4::int) n
"""


@pytest.fixture
async def conn(database: str) -> AsyncIterator[Connection]:
    """With the appservices `a` and `b`."""
    one = await connect(database)
    for appservice_id in ("a", "b"):
        await registrations.announce(one, appservice_id, b"", epoch="test")
    yield one
    await one.close()


async def know(conn: Connection, keys: dict[DeviceKey, int | None]) -> None:
    """Devices that appservices were told of; a number is what the homeserver said itself."""
    changes = {
        key: KeyChange(
            recount=count is None,
            counts=None if count is None else json.dumps({"signed_curve25519": count}).encode(),
        )
        for key, count in keys.items()
    }
    await device_updates.change_keys(conn, changes)


async def test_the_oldest_to_device_message_is_found_behind_other_items_and_not_far_behind(
    conn: Connection,
) -> None:
    await conn.execute(ITEM, "a", "event", 1, 5)
    await conn.execute(ITEM, "a", "to_device", 6, 6)
    await conn.execute(ITEM, "b", "event", 1, figures.LOOKED_AT)
    far = figures.LOOKED_AT + 1
    await conn.execute(ITEM, "b", "to_device", far, far)
    found = await figures.oldest_to_device(conn)
    assert set(found) == {"a"}
    assert 3600 <= found["a"] < 7200
    await conn.execute("update lane set acked_to = 6 where appservice_id = 'a'")
    await conn.execute("update lane set acked_to = 1 where appservice_id = 'b'")
    assert set(await figures.oldest_to_device(conn)) == {"b"}


async def test_devices_with_fewer_than_ten_one_time_keys_are_counted_in_synapse_s_tables(
    conn: Connection,
) -> None:
    await make_synapse_tables(conn)
    await conn.execute("set search_path = appservice_bridge")
    devices = {"FEW": 9, "ENOUGH": 10, "NONE": 0}
    await know(conn, dict.fromkeys([DeviceKey("a", "@u:x", one) for one in devices]))
    await know(conn, {DeviceKey("b", "@v:x", "OTHERS"): None})
    for device, keys in devices.items():
        await conn.execute(
            "insert into public.e2e_one_time_keys_json"
            " (user_id, device_id, algorithm, key_id, ts_added_ms, key_json)"
            " select '@u:x', $1, a, n::text, 0, '{}' from generate_series(1, $2::int) n,"
            " unnest(array['signed_curve25519', 'other']) a",
            device,
            keys,
        )
    assert await figures.low_in_synapse(conn) == {"a": 2, "b": 1}


async def test_any_other_homeserver_s_word_is_taken_for_them(conn: Connection) -> None:
    said = {DeviceKey("a", "@u:x", "FEW"): 9, DeviceKey("a", "@u:x", "ENOUGH"): 10}
    await know(conn, {**said, DeviceKey("b", "@v:x", "UNKNOWN"): None})
    await device_updates.change_keys(
        conn, {DeviceKey("b", "@v:x", "EMPTY"): KeyChange(recount=False, counts=b"{}")}
    )
    assert await figures.low_as_said(conn) == {"a": 1, "b": 1}
