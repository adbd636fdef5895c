"""People on a real homeserver who send to-device messages to an appservice's users."""

import asyncio
import secrets
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import aiohttp

from appservice_bridge.bench.receivers import Receivers
from appservice_bridge.dev.synapse_users import register_user
from appservice_bridge.domain.errors import BridgeError

KIND: Final = "m.room.encrypted"
DEVICE: Final = "DEV"
QUIET_SECONDS: Final = 5.0
LONGEST_SECONDS: Final = 120.0
_CLIENT: Final = "/_matrix/client/v3"
_FILLING: Final = "x" * 850  # with what is around it about 1 KB


class NothingCameError(BridgeError):
    """Of all that one sender sent nothing reached the appservice: whoever delivers does not."""

    def __init__(self, accepted: int) -> None:
        super().__init__(f"none of {accepted} messages that the homeserver accepted came")


class Sent(NamedTuple):
    """What came of many requests.

    Attributes:
        accepted: how many the homeserver took.
        seconds: that all of them took.
        answered_ms: milliseconds until the answer, of each.
    """

    accepted: int
    seconds: float
    answered_ms: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """Who sends, and to whom.

    Attributes:
        tokens: of those who send.
        recipients: user ids; each has one device, `DEVICE`.
    """

    url: str
    tokens: Sequence[str] = field(repr=False)
    recipients: Sequence[str]

    async def send(self, http: aiohttp.ClientSession, token: str, number: int) -> bool:
        """Send one message; whether the homeserver accepted it."""
        content = {"at": time.monotonic_ns(), "number": number, "ciphertext": _FILLING}
        recipient = self.recipients[number % len(self.recipients)]
        url = f"{self.url}{_CLIENT}/sendToDevice/{KIND}/{uuid.uuid4().hex}"
        body = {"messages": {recipient: {DEVICE: content}}}
        headers = {"Authorization": f"Bearer {token}"}
        async with http.put(url, json=body, headers=headers) as answer:
            await answer.read()
            return answer.status == 200

    async def closed_loop(self, senders: int, messages: int) -> Sent:
        """Each sends its next message when the last was answered."""
        numbers, accepted = iter(range(messages)), 0
        answered: list[float] = []
        began = time.monotonic()

        async def one(http: aiohttp.ClientSession, token: str) -> None:
            nonlocal accepted
            for number in numbers:  # shared: each is taken once
                sent = time.monotonic()
                taken = await self.send(http, token, number)
                answered.append(1000 * (time.monotonic() - sent))
                accepted += taken  # not before the await: others count, too

        async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as group:
            for token in self.tokens[:senders]:
                group.create_task(one(http, token))
        return Sent(accepted, time.monotonic() - began, answered)

    async def steadily(self, messages: int, per_second: float) -> int:
        """One sends so many a second; returns how many were accepted."""
        loop, accepted = asyncio.get_running_loop(), 0
        began = loop.time()
        async with aiohttp.ClientSession() as http:
            for number in range(messages):
                await asyncio.sleep(max(0.0, began + number / per_second - loop.time()))
                accepted += await self.send(http, self.tokens[0], number)
        return accepted


async def gathered(
    url: str, *, shared_secret: str, as_token: str, senders: int, localparts: Sequence[str]
) -> Crowd:
    """Register the senders, and the appservice's users with one device each.

    Raises:
        ClientResponseError: the homeserver refused one of the appservice's.
        RegistrationRefusedError: it refused a sender.
    """
    tokens = []
    for number in range(senders):
        answer = await register_user(
            url,
            shared_secret=shared_secret,
            localpart=f"sender{number}",
            password=secrets.token_urlsafe(),
        )
        tokens.append(str(answer["access_token"]))
    headers = {"Authorization": f"Bearer {as_token}"}
    async with aiohttp.ClientSession(headers=headers, raise_for_status=True) as http:
        recipients = [await _puppet(http, url, localpart) for localpart in localparts]
    return Crowd(url=url, tokens=tokens, recipients=recipients)


async def _puppet(http: aiohttp.ClientSession, url: str, localpart: str) -> str:
    body = {
        "type": "m.login.application_service",
        "username": localpart,
        "device_id": DEVICE,
    }
    async with http.post(f"{url}{_CLIENT}/register", json=body) as answer:
        registered: dict[str, Any] = await answer.json()
        return str(registered["user_id"])


async def until_quiet(
    receivers: Receivers, messages: int, quiet_seconds: float = QUIET_SECONDS
) -> int:
    """Wait until so many came, or none for `quiet_seconds`; returns how many did.

    After `LONGEST_SECONDS` it is over in any case.
    """
    loop = asyncio.get_running_loop()
    began = moved = loop.time()
    last = -1
    while True:
        seen, now = (await receivers.seen()).messages, loop.time()
        if seen > last:
            last, moved = seen, now
        if seen >= messages or now > min(moved + quiet_seconds, began + LONGEST_SECONDS):
            return seen
        await asyncio.sleep(0.1)
