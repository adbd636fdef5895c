"""How long an old path is kept to: until it is time to look again, or it is the wrong one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import aiohttp
import pytest

from appservice_bridge.delivery.http_sender import (
    LEGACY_PATH,
    REPROBE_SECONDS,
    V1_PATH,
    HttpSender,
)
from appservice_bridge.domain.outcome import Acked, Refused
from appservice_bridge.domain.policy import DeliveryPolicy
from appservice_bridge.domain.registration import Registration
from tests.support.appservice import Answer, Appservice, appservice, ok

UNRECOGNIZED: Final = b'{"errcode":"M_UNRECOGNIZED"}'
BODY: Final = b'{"events":[]}'


def knows(
    path: str, *, otherwise: tuple[int, dict[str, str], bytes] = (404, {}, UNRECOGNIZED)
) -> Answer:
    """An appservice that serves one of the two paths."""
    return lambda request: ok(request) if request.path.startswith(path) else otherwise


@asynccontextmanager
async def sending_to(bot: Appservice) -> AsyncIterator[HttpSender]:
    registration = Registration(
        id="bot",
        url=bot.url,
        as_token="as",
        hs_token="hs",
        sender_localpart="bot",
        source="bot.yaml",
    )
    async with aiohttp.ClientSession() as session:
        yield HttpSender(session, registration, DeliveryPolicy())


def paths(bot: Appservice) -> list[str]:
    return [request.path.removesuffix(request.txn_id) for request in bot.requests]


async def test_case_18_the_v1_path_is_tried_again_later() -> None:
    async with appservice() as bot, sending_to(bot) as sender:
        bot.answer = knows(LEGACY_PATH)
        for now in (1.0, REPROBE_SECONDS, REPROBE_SECONDS + 1.0):
            assert await sender.send(f"txn-{now}", BODY, now=now) == Acked(status=200)
    assert paths(bot) == [V1_PATH, LEGACY_PATH, LEGACY_PATH, V1_PATH, LEGACY_PATH]


@pytest.mark.parametrize("status", [404, 405])
@pytest.mark.parametrize("body", [UNRECOGNIZED, b"not found"])
async def test_an_appservice_that_knows_its_old_path_no_more_is_sent_to_the_new_one_at_once(
    status: int, body: bytes
) -> None:
    async with appservice() as bot, sending_to(bot) as sender:
        bot.answer = knows(LEGACY_PATH)
        await sender.send("txn-1", BODY, now=1.0)
        bot.answer = knows(V1_PATH, otherwise=(status, {}, body))
        assert await sender.send("txn-2", BODY, now=2.0) == Acked(status=200)
        assert await sender.send("txn-3", BODY, now=3.0) == Acked(status=200)
    assert paths(bot) == [V1_PATH, LEGACY_PATH, LEGACY_PATH, V1_PATH, V1_PATH]


async def test_where_neither_path_is_known_each_is_tried_once() -> None:
    async with appservice() as bot, sending_to(bot) as sender:
        bot.answer = lambda _: (404, {}, UNRECOGNIZED)
        refused = Refused(status=404, errcode="M_UNRECOGNIZED", answer=UNRECOGNIZED.decode())
        assert await sender.send("txn-1", BODY, now=1.0) == refused
    assert paths(bot) == [V1_PATH, LEGACY_PATH]
