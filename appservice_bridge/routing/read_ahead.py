"""What comes behind a batch of the log, read and looked at while Postgres routes that one."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias

from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.storage.capture_log import Batch
from appservice_bridge.storage.straight import Straight


class LookedAt(NamedTuple):
    """A batch, and to whom its messages go; None: it has to go the long way."""

    batch: Batch
    items: Sequence[Straight] | None


Read: TypeAlias = Callable[[], Awaitable[LookedAt | None]]


class ReadAhead:
    """Of one pass of intake, which it does not outlive."""

    def __init__(self) -> None:
        self._reading: asyncio.Task[LookedAt | None] | None = None
        self._routed_at: datetime | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._reading is not None:
            self._reading.cancel()

    def begin(self, read: Read) -> None:
        """Read; of no use unless the batch in front of it is routed."""
        self._reading = asyncio.create_task(_what_can_be_read(read))

    def routed(self, at: datetime) -> None:
        """The batch in front of it was consumed, and the gate says so since then."""
        self._routed_at = at

    async def batch(self) -> LookedAt | None:
        """What was read, with the gate as the batch in front of it left that; None: read anew.

        Nobody is to hold a connection meanwhile: all of them may be taken.
        """
        if self._reading is None or self._routed_at is None:
            return None
        read = await self._reading
        if read is None:
            return None
        gate = replace(read.batch.gate, last_intake_at=self._routed_at)
        return read._replace(batch=replace(read.batch, gate=gate))


async def _what_can_be_read(read: Read) -> LookedAt | None:
    try:
        return await read()
    except BridgeError:
        return None  # the next pass reads for itself, and hears of it
