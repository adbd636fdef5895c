"""An appservice in a test: what the bot is sent, what it answers, and checks of both."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from appservice_bridge.testing.background import BackgroundLoop
from appservice_bridge.testing.explaining import explained
from appservice_bridge.testing.keys import claim_all
from appservice_bridge.testing.puppet import Puppet
from appservice_bridge.testing.seen import Attempt, JsonDict, Transaction, Where
from appservice_bridge.testing.slots import Slot
from appservice_bridge.testing.stage import Stage
from appservice_bridge.testing.stand import Handler, Stand

PATIENCE_SECONDS: Final = 30.0
QUIET_SECONDS: Final = 1.0


class Appservice:
    """Stands between the bridge and the bot; each item is expected once.

    A check looks at what came since the appservice was made, and waits for the rest. What a check
    returned is claimed: no other check returns it, and `expect_nothing` does not mind it.
    """

    def __init__(self, stage: Stage, loop: BackgroundLoop, slot: Slot, stand: Stand) -> None:
        self._stage = stage
        self._loop = loop
        self._slot = slot
        self._stand = stand

    @property
    def id(self) -> str:
        """As in the registration."""
        return self._slot.id

    @property
    def registration(self) -> dict[str, Any]:
        """The registration as homeserver and bridge know it; its url leads to the stand."""
        return dict(self._slot.document)

    @property
    def registration_file(self) -> Path:
        """The same as a file."""
        return self._slot.file

    @property
    def as_token(self) -> str:
        """With it the bot speaks to the homeserver."""
        return str(self._slot.document["as_token"])

    @property
    def hs_token(self) -> str:
        """With it the bot is spoken to."""
        return self._slot.hs_token

    @property
    def sender(self) -> str:
        """User id of the registration's `sender_localpart`."""
        return self.user_id(str(self._slot.document["sender_localpart"]))

    @property
    def transactions(self) -> tuple[Transaction, ...]:
        """What the bot took (2xx), in order, each once."""
        return tuple(self._stand.seen.transactions)

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Every request with a transaction, and how it was answered."""
        return tuple(self._stand.seen.attempts)

    def localpart(self, name: str) -> str:
        """A localpart inside the namespace of an unnamed appservice; a declared one's stays."""
        if self._slot.declared:
            return name
        prefix = str(self._slot.document["sender_localpart"]).removesuffix("bot")
        return f"{prefix}{name}"

    def user_id(self, localpart: str) -> str:
        """That user on this homeserver."""
        return f"@{localpart}:{self._stage.options.server_name}"

    def connect(self, bot: str | Handler) -> None:
        """From now on transactions go to this url, or to this handler.

        An async handler runs on the loop that is running where this is called. Its result is the
        status to answer, None is 200; an exception is answered 500.
        """
        if isinstance(bot, str):
            self._stand.url, self._stand.handler = bot, None
            return
        self._stand.url, self._stand.handler = None, bot
        self._stand.loop = _running_loop()

    def fail_next(self, status: int, times: int = 1) -> None:
        """Answer the next attempts with a status; the bot does not see them."""
        self._stand.failures += [status] * times

    def hold(self) -> None:
        """Leave attempts without an answer until `release`; the bot does not see them before."""
        self._stand.open.clear()

    def release(self) -> None:
        """Let what is held go on to the bot."""
        self._loop.soon(self._stand.open.set)

    def forget(self) -> None:
        """Claim all that came so far: the next check looks at what comes from now on."""
        self._stand.seen.claim_all()

    async def expect_to_device(
        self,
        *,
        type: str | None = None,
        sender: str | None = None,
        user_id: str | None = None,
        device_id: str | None = None,
        within: float = PATIENCE_SECONDS,
    ) -> JsonDict:
        """Wait for a to-device message that the bot took, and return it.

        Args:
            type: as in the message; what is left out may be anything.
            sender: as in the message.
            user_id: to whom it is.
            device_id: to which device.
            within: seconds.

        Raises:
            AssertionError: none came; it says what did, and where the rest is.
        """
        wanted = _wanted(type=type, sender=sender, to_user_id=user_id, to_device_id=device_id)
        return await self._loop.call(self._expect("to_device", wanted, within))

    async def expect_event(
        self,
        *,
        type: str | None = None,
        sender: str | None = None,
        room_id: str | None = None,
        state_key: str | None = None,
        within: float = PATIENCE_SECONDS,
    ) -> JsonDict:
        """The same for a room event."""
        wanted = _wanted(type=type, sender=sender, room_id=room_id, state_key=state_key)
        return await self._loop.call(self._expect("event", wanted, within))

    async def expect_ephemeral(
        self,
        *,
        type: str | None = None,
        room_id: str | None = None,
        within: float = PATIENCE_SECONDS,
    ) -> JsonDict:
        """The same for typing, receipts and presence."""
        wanted = _wanted(type=type, room_id=room_id)
        return await self._loop.call(self._expect("ephemeral", wanted, within))

    async def expect_transaction(
        self,
        where: Callable[[Transaction], bool],
        *,
        after: Transaction | None = None,
        within: float = PATIENCE_SECONDS,
    ) -> Transaction:
        """Wait for a taken transaction of which something holds; nothing is claimed.

        Args:
            where: asked of each.
            after: look only at what was taken later than this one.
            within: seconds.

        Raises:
            AssertionError: there was none.
        """
        __tracebackhide__ = True
        return await self._loop.call(self._expect_transaction(where, after, within))

    async def expect_held(self, *, within: float = PATIENCE_SECONDS) -> Attempt:
        """Wait until an attempt is held, after `hold`; that attempt.

        Raises:
            AssertionError: none came.
        """
        __tracebackhide__ = True
        return await self._loop.call(self._expect_held(within))

    async def expect_attempts(self, count: int, *, within: float = PATIENCE_SECONDS) -> None:
        """Wait until so many requests with a transaction were begun, answered or not.

        Raises:
            AssertionError: there were fewer.
        """
        __tracebackhide__ = True
        await self._loop.call(self._expect_attempts(count, within))

    async def expect_nothing(
        self,
        *,
        type: str | None = None,
        sender: str | None = None,
        within: float = QUIET_SECONDS,
    ) -> None:
        """Wait, and see that no event or to-device message is there, or comes, unclaimed.

        Raises:
            AssertionError: one was there, or came.
        """
        __tracebackhide__ = True
        await self._loop.call(self._expect_nothing(_wanted(type=type, sender=sender), within))

    async def claim_all_keys(self) -> int:
        """Claim every one-time key of the appservice's users; returns how many.

        The next transaction says that there are none left. Fallback keys stay as they are.
        """
        return await self._loop.call(claim_all(self._stage, self._slot))

    async def puppet(self, name: str, *, device_id: str = "PUPPET") -> Puppet:
        """A user of the appservice with one device and its keys, for a test without a bot."""
        user_id = self.user_id(self.localpart(name))
        return await self._loop.call(
            Puppet.made(self._stage, self._loop, self.as_token, user_id, device_id)
        )

    async def _expect(self, kind: Where, wanted: JsonDict, within: float) -> JsonDict:
        __tracebackhide__ = True
        seen = self._stand.seen
        if await seen.until(lambda: seen.first(kind, wanted) is not None, within=within):
            found = seen.first(kind, wanted)
            assert found is not None  # noqa: S101 - nobody else claims on this loop
            seen.claim(kind, found[0])
            return found[1]
        raise AssertionError(await self._missed(f"no {kind} {_told(wanted)}", within))

    async def _expect_transaction(
        self, where: Callable[[Transaction], bool], after: Transaction | None, within: float
    ) -> Transaction:
        __tracebackhide__ = True
        seen = self._stand.seen

        def found() -> list[Transaction]:
            start = 0 if after is None else seen.transactions.index(after) + 1
            return [one for one in seen.transactions[start:] if where(one)]

        if await seen.until(lambda: bool(found()), within=within):
            return found()[0]
        raise AssertionError(await self._missed("no such transaction", within))

    async def _expect_held(self, within: float) -> Attempt:
        __tracebackhide__ = True
        seen = self._stand.seen
        if await seen.until(lambda: bool(seen.held), within=within):
            return seen.attempts[max(seen.held)]
        raise AssertionError(await self._missed("no attempt is held", within))

    async def _expect_attempts(self, count: int, within: float) -> None:
        __tracebackhide__ = True
        seen = self._stand.seen
        if not await seen.until(lambda: len(seen.attempts) >= count, within=within):
            raise AssertionError(await self._missed(f"fewer than {count} attempts", within))

    async def _expect_nothing(self, wanted: JsonDict, within: float) -> None:
        __tracebackhide__ = True
        seen = self._stand.seen

        def unwanted() -> list[str]:
            kinds: tuple[Where, ...] = ("event", "to_device")
            return [kind for kind in kinds if seen.first(kind, wanted) is not None]

        if await seen.until(lambda: bool(unwanted()), within=within):
            text = f"expected nothing {_told(wanted)}, and there was: {', '.join(unwanted())}"
            raise AssertionError(f"{text}\n{await explained(self._stage, self._slot)}")

    async def _missed(self, what: str, within: float) -> str:
        return f"{what} within {within:g} s\n{await explained(self._stage, self._slot)}"


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _wanted(**fields: str | None) -> JsonDict:
    return {name: value for name, value in fields.items() if value is not None}


def _told(wanted: JsonDict) -> str:
    return " ".join(f"{name}={value}" for name, value in wanted.items()) or "at all"
