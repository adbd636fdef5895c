"""Waits that end by themselves, and long work that lets others work."""

import asyncio
import math
from collections.abc import AsyncIterator, Iterable
from typing import Final, TypeVar

Item = TypeVar("Item")
AT_ONCE: Final = 50


async def set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, at most so long, which may be infinite; whether it is set."""
    try:
        async with asyncio.timeout(seconds if seconds < math.inf else None):
            return await event.wait()
    except TimeoutError:
        return False


async def in_turns(items: Iterable[Item], *, at_once: int = AT_ONCE) -> AsyncIterator[Item]:
    """Each item; after every so many, everything else on the loop has its turn."""
    for number, item in enumerate(items, start=1):
        yield item
        if number % at_once == 0:
            await asyncio.sleep(0)
