"""A wait ends with its event, or with its time."""

import asyncio
import math

from appservice_bridge.domain.waiting import set_within


async def test_a_wait_tells_whether_its_event_was_set() -> None:
    event = asyncio.Event()
    assert not await set_within(event, 0.01)
    asyncio.get_running_loop().call_later(0.01, event.set)
    assert await set_within(event, 10)


async def test_an_event_that_is_set_already_is_seen_though_there_is_no_time() -> None:
    event = asyncio.Event()
    event.set()
    assert await set_within(event, 0)


async def test_a_wait_without_end_ends_with_its_event() -> None:
    event = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, event.set)
    assert await set_within(event, math.inf)
