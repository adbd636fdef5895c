"""Which path an attempt takes, for how long an old one is kept to, and what an answer asks for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Final

import aiohttp
import pytest

from appservice_bridge.delivery.http_sender import (
    LEGACY_PATH,
    REPROBE_SECONDS,
    V1_PATH,
    HttpSender,
    retry_after,
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


def test_a_rest_may_be_asked_for_in_seconds_or_until_a_date() -> None:
    assert retry_after("7") == 7
    assert retry_after(" 0 ") == 0
    until = format_datetime(datetime.now(UTC) + timedelta(minutes=5), usegmt=True)
    assert 290 < (retry_after(until) or 0) <= 300
    long_ago = format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)
    assert (retry_after(long_ago) or 0) < 0  # the shortest rest, then
    for unreadable in (None, "", "soon", "-1", "1.5", "Mon, 01 Jan 2024"):
        assert retry_after(unreadable) is None
