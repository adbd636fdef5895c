"""An event loop in a thread of its own, so that what runs on it is bound to no test's loop."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

Result = TypeVar("Result")


class BackgroundLoop:
    """Runs coroutines for whoever asks: tests with a loop, of any scope, and tests without one.

    Children that it starts die with this thread (see `ChildProcess`), so it lives as long as they.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="appservice-bridge", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Wait for a coroutine, from a thread without a loop.

        Raises:
            RuntimeError: called from the loop itself, which would wait for ever.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("await it: this is the loop that it would run on")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C, or the test's time is over
            raise

    async def call(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Wait for a coroutine, from any loop; to be cancelled there cancels it here."""
        if threading.current_thread() is self._thread:
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def soon(self, work: Callable[[], object]) -> None:
        """Have something small done on the loop, and do not wait for it."""
        self._loop.call_soon_threadsafe(work)

    def close(self) -> None:
        """End what still runs, and the thread."""
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(_end_all(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        if not self._thread.is_alive():
            self._loop.close()


async def _end_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
