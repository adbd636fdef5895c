"""Until when this worker may write: no request outlives the lease it was made under."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class LeaseClock:
    """The monotonic deadline of a worker's leases, and the requests that run under it.

    Postgres' clock decides whether a lease holds; this one, counted from before the renewal was
    sent, is always a little earlier.

    Attributes:
        term: changes when the leases are renewed after they ran out: all that was known of a lane
            may be old by then.
    """

    def __init__(self) -> None:
        self.term = 0
        self._deadline = 0.0
        self._running: set[asyncio.Timeout] = set()

    @property
    def holds(self) -> bool:
        """Whether a request may begin now."""
        return asyncio.get_running_loop().time() < self._deadline

    def extend(self, deadline: float) -> None:
        """The leases were renewed: they hold until this time of the event loop."""
        self.term += not self.holds
        self._deadline = deadline
        for timeout in self._running:
            if not timeout.expired():
                timeout.reschedule(deadline)

    @asynccontextmanager
    async def guard(self) -> AsyncIterator[None]:
        """Run a request under the lease; it is cancelled when renewal fails for too long.

        Raises:
            TimeoutError: the lease ran out; the request's socket is closed.
        """
        if not self.holds:
            raise TimeoutError
        async with asyncio.timeout_at(self._deadline) as timeout:
            self._running.add(timeout)
            try:
                yield
            finally:
                self._running.discard(timeout)
