"""Waits that end by themselves."""

import asyncio
import math


async def set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, at most so long, which may be infinite; whether it is set."""
    try:
        async with asyncio.timeout(seconds if seconds < math.inf else None):
            return await event.wait()
    except TimeoutError:
        return False
