"""A worker whose watchkeeper looks once, at its start: what a test writes there then stays."""

import asyncio

import pytest

from appservice_bridge.sources.watchkeeper import Watchkeeper


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when the worker of this process has looked; it looks no more."""
    over = asyncio.Event()

    async def run(keeper: Watchkeeper, _stop: asyncio.Event) -> None:
        await keeper.look_once()
        over.set()

    monkeypatch.setattr(Watchkeeper, "run", run)
    return over
