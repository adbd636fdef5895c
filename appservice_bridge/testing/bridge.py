"""The bridge in a test session, and what a test asks of it."""

from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from appservice_bridge.testing.appservice import Appservice
from appservice_bridge.testing.background import BackgroundLoop
from appservice_bridge.testing.matrix_user import MatrixUser
from appservice_bridge.testing.slots import Slot
from appservice_bridge.testing.stage import Stage
from appservice_bridge.testing.stand import Handler

Result = TypeVar("Result")


class Bridge:
    """A real Synapse, the bridge, and their Postgres; all of them end with the session.

    What is awaited here may be awaited on any event loop. A test without one says
    `bridge.run(bridge.kill())`.
    """

    def __init__(self, stage: Stage, loop: BackgroundLoop) -> None:
        self._stage = stage
        self._loop = loop

    @property
    def homeserver_url(self) -> str:
        """Base URL of the homeserver's client API."""
        return self._stage.stack.synapse.url

    @property
    def server_name(self) -> str:
        """The part of user ids behind the colon."""
        return self._stage.options.server_name

    @property
    def relay_url(self) -> str:
        """Where the homeserver sends transactions, and bots open their websocket."""
        return self._stage.stack.bridge.relay.url

    @property
    def admin_url(self) -> str:
        """Base URL of the bridge's admin port."""
        return self._stage.stack.bridge.admin.url

    @property
    def admin_token(self) -> str:
        """A token for it, role admin."""
        return self._stage.directory.secrets()["admin_token"]

    @property
    def config(self) -> Path:
        """The bridge's configuration, for its commands."""
        return self._stage.directory.config

    @property
    def env_file(self) -> Path:
        """`env.json`: the same, and all tokens, for programs."""
        return self._stage.directory.env

    @property
    def pid(self) -> int:
        """Of the bridge's process; another one after `kill`."""
        return self._stage.stack.bridge.child.pid

    @property
    def logs(self) -> dict[str, Path]:
        """The log of each part."""
        return self._stage.logs()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Wait for anything of this package in a test without an event loop."""
        return self._loop.run(work)

    async def kill(self, *, restart: bool = True, wait_for_leases: bool = False) -> None:
        """End the bridge with SIGKILL, as a crash would, and start it again.

        Args:
            restart: False leaves it dead until `start`.
            wait_for_leases: after a real crash lanes wait up to 10 s, for nobody can know
                that the worker is dead; here one can, so they are free at once unless this is True.
        """
        await self._loop.call(self._stage.kill_bridge())
        if restart:
            await self.start(wait_for_leases=wait_for_leases)

    async def start(self, *, wait_for_leases: bool = False) -> None:
        """Start it after `kill(restart=False)`; returns when it can store and deliver."""
        await self._loop.call(self._stage.start_bridge(wait_for_leases=wait_for_leases))

    def appservice(
        self, bot: str | Handler | None = None, *, registration: Path | str | None = None
    ) -> Appservice:
        """One for as long as you like; `appservice_factory` gives it back at the test's end.

        Args:
            bot: its url, or a handler; None takes everything until `Appservice.connect`.
            registration: a file of yours. One that pytest's configuration names is ready; any
                other one restarts Synapse.

        Raises:
            ConfigError: the file is not sound.
        """
        declared = Path(registration).resolve() if registration is not None else None
        slot = self._loop.run(self._stage.slot(declared))
        stand = self._stage.stands.by_name[slot.name]
        appservice = Appservice(self._stage, self._loop, slot, stand)
        bot = bot if bot is not None else slot.bot_url
        if bot is not None:
            appservice.connect(bot)
        return appservice

    def give_back(self, appservice: Appservice) -> None:
        """What still comes for it is taken and forgotten."""
        slot: Slot = appservice._slot  # noqa: SLF001 - the two are one
        self._loop.soon(lambda: self._stage.give_back(slot))

    async def user(self, name: str = "user") -> MatrixUser:
        """Somebody new, whose name begins so; `leave` them at the end."""
        return await self._loop.call(MatrixUser.made(self._stage, self._loop, name))

    async def leave(self, user: MatrixUser) -> None:
        """Close a user's client."""
        await self._loop.call(user.closed())
