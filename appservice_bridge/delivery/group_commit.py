"""One commit for all lanes that are ready: what it costs to be durable is shared."""

import asyncio
from typing import Final, TypeAlias

from appservice_bridge.storage import turns
from appservice_bridge.storage.database import Database, DatabaseUnavailableError
from appservice_bridge.storage.turns import Turn, Turned

Gathered: TypeAlias = tuple[Turn, asyncio.Future[Turned | None]]

MOST: Final = 64  # lanes in one statement


class GroupCommit:
    """Commits the turns of lanes; while one commit is under way the next ones gather.

    Dying before a commit leaves every one of its lanes as it was: what they sent is sent again, the
    same id and bytes. Dying after it leaves what it sealed in flight.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._gathered: list[Gathered] = []
        self._come = asyncio.Event()
        self._over = False

    async def turn(self, turn: Turn) -> Turned | None:
        """What was committed; None: nothing of this lane, which takes its turn alone.

        Raises:
            DatabaseUnavailableError: also when the commit's answer was lost: it may have happened.
        """
        if self._over:
            raise DatabaseUnavailableError("this worker ends")
        future: asyncio.Future[Turned | None] = asyncio.get_running_loop().create_future()
        self._gathered.append((turn, future))
        self._come.set()
        return await future

    async def run(self) -> None:
        """Commit until cancelled."""
        try:
            while True:
                await self._come.wait()
                self._come.clear()
                while self._gathered:
                    await self._commit(self._together())
        finally:
            self._over = True
            for _, future in self._gathered:
                if not future.done():
                    future.set_exception(DatabaseUnavailableError("this worker ends"))

    def _together(self) -> list[Gathered]:
        """The next ones, no two of one appservice: an older lease may still be served here."""
        together: dict[str, Gathered] = {}
        left: list[Gathered] = []
        for turn, future in self._gathered:
            appservice_id = turn.lease.appservice_id
            if appservice_id in together or len(together) == MOST:
                left.append((turn, future))
            else:
                together[appservice_id] = (turn, future)
        self._gathered = left
        return list(together.values())

    async def _commit(self, together: list[Gathered]) -> None:
        try:
            async with self._database.statement() as conn:
                taken = await turns.take(conn, [turn for turn, _ in together])
        except BaseException as error:
            failed = error
            if isinstance(error, asyncio.CancelledError):
                failed = DatabaseUnavailableError("this worker ends")
            for _, future in together:
                if not future.done():
                    future.set_exception(failed)
            if not isinstance(error, Exception):
                raise
            return
        for turn, future in together:
            if not future.done():  # its lane may be cancelled
                future.set_result(taken.get(turn.lease.appservice_id))
