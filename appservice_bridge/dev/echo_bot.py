"""An encrypted echo bot: an appservice as its author would write one."""

import asyncio
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from aiohttp import web

from appservice_bridge.dev.bot_account import BotAccount, HomeserverRefusedError
from appservice_bridge.dev.olm_device import JsonDict, OlmDevice
from appservice_bridge.dev.room_keys import RoomKeyMissingError, RoomKeys
from appservice_bridge.dev.room_members import RoomMembers

log = logging.getLogger(__name__)
ENCRYPTED: Final = "m.room.encrypted"
ONE_TIME_KEYS: Final = 50
LARGEST_BODY_BYTES: Final = 64 * 1024 * 1024
TO_DEVICE: Final = ("to_device", "de.sorunome.msc2409.to_device")
DEVICE_LISTS: Final = ("device_lists", "org.matrix.msc3202.device_lists")
KEY_COUNTS: Final = (
    "device_one_time_keys_count",
    "org.matrix.msc3202.device_one_time_keys_count",
)
FALLBACK_KEYS: Final = (
    "device_unused_fallback_key_types",
    "org.matrix.msc3202.device_unused_fallback_key_types",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BotSettings:
    """Who the bot is, as its registration says, and where the homeserver is."""

    homeserver_url: str
    user_id: str
    as_token: str
    hs_token: str


@dataclass(slots=True)
class EchoBot:
    """Joins where it is invited, and says again what it hears, encrypted.

    `app` takes transactions and answers at once; `run` works them off in order. Keys live
    in memory: a bot that must survive a restart stores both before it answers.

    Attributes:
        tell: hears what happens, in words; for the story.
    """

    settings: BotSettings
    http: aiohttp.ClientSession
    tell: Callable[[str], None] = log.info
    account: BotAccount = field(init=False)
    device: OlmDevice = field(init=False)
    room_keys: RoomKeys = field(init=False)
    members: RoomMembers = field(init=False)
    _seen: set[str] = field(default_factory=set, init=False)
    _taken: "asyncio.Queue[tuple[str, JsonDict]]" = field(default_factory=asyncio.Queue, init=False)
    _waiting: dict[str, list[JsonDict]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        device_id = f"ECHO{secrets.token_hex(4).upper()}"
        self.account = BotAccount(
            http=self.http,
            homeserver_url=self.settings.homeserver_url,
            as_token=self.settings.as_token,
            user_id=self.settings.user_id,
            device_id=device_id,
        )
        self.device = OlmDevice(self.settings.user_id, device_id)
        self.room_keys = RoomKeys(self.device)
        self.members = RoomMembers(self.account, self.device, self.room_keys)

    def app(self) -> web.Application:
        """The appservice's side of the Application Service API."""
        app = web.Application(client_max_size=LARGEST_BODY_BYTES)
        app.router.add_put("/_matrix/app/v1/transactions/{txn_id}", self._take_transaction)
        app.router.add_post("/_matrix/app/v1/ping", self._answer_ping)
        app.router.add_get("/_matrix/app/v1/{kind:users|rooms}/{name}", self._know_nothing)
        return app

    async def announce(self) -> None:
        """Make user and device, and publish the keys that others need to write to it."""
        await self.account.register()
        await self.account.remove_other_devices()
        await self._publish(
            device_keys=self.device.device_keys(),
            one_time_keys=self.device.new_one_time_keys(ONE_TIME_KEYS),
            fallback_keys=self.device.new_fallback_key(),
        )

    @property
    def untouched(self) -> int:
        """Transactions that were taken and not worked off yet."""
        return self._taken.qsize()

    async def run(self) -> None:
        """Work transactions off, one after the other, for ever."""
        while True:
            txn_id, transaction = await self._taken.get()
            await self._handle(txn_id, transaction)

    async def _take_transaction(self, request: web.Request) -> web.Response:
        if not self._is_homeserver(request):
            return web.json_response({"errcode": "M_FORBIDDEN"}, status=403)
        txn_id = request.match_info["txn_id"]
        if txn_id not in self._seen:  # a transaction comes again when our answer was lost
            transaction = await request.json()
            self._seen.add(txn_id)
            self._taken.put_nowait((txn_id, transaction))
        return web.json_response({})

    async def _answer_ping(self, request: web.Request) -> web.Response:
        if not self._is_homeserver(request):
            return web.json_response({"errcode": "M_FORBIDDEN"}, status=403)
        return web.json_response({})

    async def _know_nothing(self, _request: web.Request) -> web.Response:
        return web.json_response({"errcode": "M_NOT_FOUND"}, status=404)

    def _is_homeserver(self, request: web.Request) -> bool:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return hmac.compare_digest(given.encode(), self.settings.hs_token.encode())

    async def _handle(self, txn_id: str, transaction: JsonDict) -> None:
        """Keys first: the message they open may stand in the same transaction."""
        for message in _member(transaction, TO_DEVICE, []):
            await self._guard(self._on_to_device(txn_id, message))
        self.members.forget(_member(transaction, DEVICE_LISTS, {}))
        await self._guard(self._refill_keys(transaction))
        for event in transaction.get("events", []):
            await self._guard(self._on_event(txn_id, event))

    async def _guard(self, work: Awaitable[None]) -> None:
        """One thing that goes wrong must not keep the bot from the next."""
        try:
            await work
        except (ValueError, KeyError, TypeError, HomeserverRefusedError, aiohttp.ClientError):
            log.warning("echo_bot.skipped", exc_info=True)

    async def _on_to_device(self, txn_id: str, message: JsonDict) -> None:
        if message["to_device_id"] != self.device.device_id or message["type"] != ENCRYPTED:
            return
        payload = self.device.decrypt(message)
        if payload["type"] != "m.room_key":
            return
        session_id = self.room_keys.take(payload["content"])
        self.tell(f"the bot got a room key in transaction {txn_id}")
        for event in self._waiting.pop(session_id, []):
            await self._guard(self._on_event(txn_id, event))

    async def _refill_keys(self, transaction: JsonDict) -> None:
        own = (self.settings.user_id, self.device.device_id)
        counts = _of_device(_member(transaction, KEY_COUNTS, {}), *own)
        if counts is not None and counts.get("signed_curve25519", 0) < ONE_TIME_KEYS // 2:
            missing = ONE_TIME_KEYS - counts.get("signed_curve25519", 0)
            await self._publish(one_time_keys=self.device.new_one_time_keys(missing))
        if _of_device(_member(transaction, FALLBACK_KEYS, {}), *own) == []:
            await self._publish(fallback_keys=self.device.new_fallback_key())

    async def _publish(self, **keys: JsonDict) -> None:
        await self.account.upload_keys(keys)
        self.device.mark_published()

    async def _on_event(self, txn_id: str, event: JsonDict) -> None:
        if event["type"] == "m.room.member":
            await self._on_member(txn_id, event)
        elif event["type"] == ENCRYPTED and event["sender"] != self.settings.user_id:
            await self._on_encrypted(txn_id, event)

    async def _on_member(self, txn_id: str, event: JsonDict) -> None:
        invited = event["content"].get("membership") == "invite"
        if invited and event["state_key"] == self.settings.user_id:
            self.tell(f"the bot was invited in transaction {txn_id}")
            await self.account.join(event["room_id"])

    async def _on_encrypted(self, txn_id: str, event: JsonDict) -> None:
        try:
            inner = self.room_keys.decrypt(event)
        except RoomKeyMissingError as missing:
            self._waiting.setdefault(missing.session_id, []).append(event)
            return
        if inner["type"] == "m.room.message":
            self.tell(f"the bot decrypted a message from transaction {txn_id}")
            text = {"msgtype": "m.text", "body": inner["content"]["body"]}
            await self.members.send_encrypted(event["room_id"], "m.room.message", text)
            self.tell("the bot sent it back, encrypted")


def _member(transaction: JsonDict, names: tuple[str, ...], default: Any) -> Any:
    return next((transaction[name] for name in names if name in transaction), default)


def _of_device(by_user: JsonDict, user_id: str, device_id: str) -> Any:
    return by_user.get(user_id, {}).get(device_id)
