"""Postgres, Synapse and the bridge for a test session, and the stands that bots are tested at."""

import os
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import aiohttp

from appservice_bridge.dev.appservices import plug_in
from appservice_bridge.dev.dev_directory import DevDirectory
from appservice_bridge.dev.env_file import write_env_file
from appservice_bridge.dev.parts import launched
from appservice_bridge.dev.stack import Stack
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.storage.database import Connection, connect
from appservice_bridge.storage.waiting import free_lanes_of_the_dead
from appservice_bridge.testing.slots import Slot, Slots
from appservice_bridge.testing.stand import Stand, Stands

RELOAD: Final = "/_appservice_bridge/v1/reload"


class ReloadFailedError(BridgeError):
    """The bridge did not take new registrations; what it said is in the message."""

    def __init__(self, answer: object) -> None:
        super().__init__(f"the bridge did not take the registrations: {answer}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOptions:
    """What pytest's configuration says.

    Attributes:
        directory: exists, and is ours alone.
        synapse_python: an interpreter that has matrix-synapse.
        declared: registration files of the person who tests.
        appservices: how many unnamed ones are made at once.
    """

    directory: Path
    synapse_python: Path
    server_name: str = "test.localhost"
    declared: Sequence[Path] = ()
    appservices: int = 32


@dataclass(slots=True)
class Stage:
    """Belongs to one event loop, on which all of it runs.

    Attributes:
        users: how many were made; the next one's number.
    """

    options: StageOptions
    directory: DevDirectory
    stands: Stands
    slots: Slots
    stack: Stack
    http: aiohttp.ClientSession
    stop: AsyncExitStack = field(repr=False)
    in_use: dict[str, Slot] = field(default_factory=dict)
    users: int = 0

    async def slot(self, declared: Path | None) -> Slot:
        """One that is known to homeserver and bridge; a restart of Synapse makes it so.

        Args:
            declared: absolute path of a registration file; None: an unnamed one.

        Raises:
            ConfigError: the declared file is not sound.
        """
        if declared is not None and declared in self.slots.declared:
            slot = self.slots.declared[declared]
        elif declared is not None:
            slot = self.stand_for(self.slots.declare(declared))
            await self._make_known()
        else:
            if not self.slots.free:
                self.add(self.options.appservices)
                await self._make_known()
            slot = self.slots.free.pop(0)
        self.in_use[slot.name] = slot
        return slot

    def give_back(self, slot: Slot) -> None:
        """Its test is over: what still comes for it is taken and forgotten."""
        self.in_use.pop(slot.name, None)
        self.stands.by_name[slot.name].retire()

    async def kill_bridge(self) -> None:
        """SIGKILL, and wait for the end of the process."""
        os.kill(self.stack.bridge.child.pid, signal.SIGKILL)
        await self.stack.bridge.child.ended()

    async def start_bridge(self, *, wait_for_leases: bool) -> None:
        """Start the bridge after a kill.

        Args:
            wait_for_leases: as in production, where nobody can know that the dead worker is
                dead before its lease of 10 s runs out.
        """
        if not wait_for_leases:
            conn = await self.connect()
            try:
                await free_lanes_of_the_dead(conn)
            finally:
                await conn.close()
        await launched(self.stack.bridge)
        write_env_file(self.stack)

    async def connect(self) -> Connection:
        """A connection to the database of bridge and homeserver; the caller closes it."""
        return await connect(self.stack.synapse.settings.database)

    def dead_parts(self) -> dict[str, int]:
        """Exit codes of processes that have ended."""
        codes = {name: part.child.exit_code for name, part in self.stack.parts.items()}
        return {name: code for name, code in codes.items() if code is not None}

    def logs(self) -> dict[str, Path]:
        """Where each part writes."""
        stack = self.stack
        return {
            "bridge": stack.bridge.log,
            "synapse": stack.synapse.log,
            "postgres": stack.postgres.cluster.log,
        }

    def add(self, count: int) -> None:
        """Make so many more unnamed appservices; nobody but the stands knows them yet."""
        for slot in self.slots.make(count):
            self.stand_for(slot)

    def stand_for(self, slot: Slot) -> Slot:
        """Give a slot its place behind the stands' port."""
        self.stands.by_name[slot.name] = Stand(slot.hs_token)
        return slot

    async def _make_known(self) -> None:
        """The bridge first, so that no fact of a new appservice is taken for somebody else's.

        Synapse forgets those whose test is over.
        """
        await self._reload_bridge()
        synapse = self.stack.synapse
        synapse.stop()
        appservices = plug_in(self.directory, self._wanted(), relay_url=self.stack.bridge.relay.url)
        copies = [one.copy for one in appservices]
        synapse.settings = replace(synapse.settings, registrations=copies)
        self.stack = replace(self.stack, appservices=appservices)
        await launched(synapse)
        write_env_file(self.stack)

    def _wanted(self) -> list[Path]:
        slots = [*self.slots.declared.values(), *self.in_use.values(), *self.slots.free]
        return list(dict.fromkeys(slot.file for slot in slots))

    async def _reload_bridge(self) -> None:
        headers = {"Authorization": f"Bearer {self.directory.secrets()['admin_token']}"}
        url = self.stack.bridge.admin.url + RELOAD
        async with self.http.post(url, headers=headers) as response:
            answer: dict[str, Any] = await response.json()
            if response.status != 200:
                raise ReloadFailedError(answer)
