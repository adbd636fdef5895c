"""The bot beside each test: in the test's own process, with an appservice of its own."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from bot import running

from appservice_bridge.dev.echo_bot import BotSettings
from appservice_bridge.testing.appservice import Appservice
from appservice_bridge.testing.bridge import Bridge
from appservice_bridge.testing.factories import AppserviceFactory


@dataclass(frozen=True)
class TestedBot:
    """The bot's user, and what stands between it and the bridge."""

    __test__ = False
    user_id: str
    appservice: Appservice


@pytest.fixture
async def bot(bridge: Bridge, appservice_factory: AppserviceFactory) -> AsyncIterator[TestedBot]:
    appservice = appservice_factory()
    settings = BotSettings(
        homeserver_url=bridge.homeserver_url,
        user_id=appservice.sender,
        as_token=appservice.as_token,
        hs_token=appservice.hs_token,
    )
    async with running(settings) as url:
        appservice.connect(url)
        yield TestedBot(user_id=appservice.sender, appservice=appservice)
