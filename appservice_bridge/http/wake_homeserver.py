"""Ends the homeserver's backoff: it pings itself through the homeserver when it can store again."""

import asyncio
import secrets
from collections.abc import Collection, Mapping
from typing import Final
from urllib.parse import quote

import aiohttp
import structlog
from yarl import URL

from appservice_bridge.domain.backoff import Backoff
from appservice_bridge.domain.budget import Budget
from appservice_bridge.domain.registration import Registration
from appservice_bridge.storage.budget import over_budget
from appservice_bridge.storage.database import Database, DatabaseUnavailableError

log = structlog.get_logger(__name__)

PROBE_PREFIX: Final = "ab-probe-"
PROBE_STATUS: Final = 418  # nobody else answers a ping so: who gets it back has reached the relay
_PREFIX: Final = "ab-wake-"
_TRIES: Final = 12  # with the backoff below about eight minutes, the homeserver's own longest rest
_BACKOFF: Final = Backoff(first_seconds=0.5, ceiling_seconds=60)
_LOOK_SECONDS: Final = 0.5  # how soon it is seen that the database is back
_CALM_SECONDS: Final = 60.0  # without a try: what is refused now is another outage
_AT_ONCE: Final = 8
_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)


def is_own_ping(transaction_id: object) -> bool:
    """Whether a ping that the homeserver brings was ours, and so must not reach the appservice."""
    return isinstance(transaction_id, str) and transaction_id.startswith(_PREFIX)


def is_probe(transaction_id: object) -> bool:
    """Whether somebody asks by this ping if the homeserver's copy leads to the relay."""
    return isinstance(transaction_id, str) and transaction_id.startswith(PROBE_PREFIX)


class HomeserverWaker:
    """Asks the homeserver to retry at once, for each appservice that it may be resting from.

    Synapse doubles its rest up to 512 s, and ends it when the appservice pings through it.
    """

    def __init__(
        self,
        database: Database,
        session: aiohttp.ClientSession,
        homeserver_url: str,
        registrations: Mapping[str, Registration],
        budget: Budget = Budget(),  # noqa: B008 - frozen
        waiting: Collection[str] | None = None,
    ) -> None:
        self._database = database
        self._budget = budget
        self._session = session
        self._homeserver_url = homeserver_url.rstrip("/")
        self._registrations = registrations
        # The bridge may have been away: all at the start, unless someone was here before.
        self._waiting = set(registrations) & set(registrations if waiting is None else waiting)
        self._refused = asyncio.Event()
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    def left_over(self, appservice_ids: Collection[str]) -> set[str]:
        """Of these, those it has not woken yet, and those it does not know."""
        return {
            id_ for id_ in appservice_ids if id_ in self._waiting or id_ not in self._registrations
        }

    def refused(self, appservice_id: str) -> None:
        """The homeserver was answered 503 and rests now."""
        self._waiting.add(appservice_id)
        self._refused.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Wake the homeserver after every outage, until `stop` is set."""
        async with asyncio.TaskGroup() as group:
            waking = group.create_task(self._wake_after_outages(), name="waker:pings")
            await stop.wait()
            waking.cancel()

    async def _wake_after_outages(self) -> None:
        """An outage of the database, or a lack of room, is waited for without end.

        One of the homeserver is not.
        """
        clock = asyncio.get_running_loop().time
        tries, tried_at = 0, clock()
        while True:
            if not self._waiting or tries >= _TRIES:
                await self._refused.wait()
                if clock() - tried_at > _CALM_SECONDS:
                    tries = 0
            self._refused.clear()
            await asyncio.sleep(_BACKOFF.rest(tries + 1))
            ready = await self._until_it_can_store()
            tries, tried_at = tries + 1, clock()
            await self._wake_all(ready)

    async def _until_it_can_store(self) -> set[str]:
        """Those for whom it can, as soon as there are any."""
        while True:
            try:
                if ready := await self._with_room():
                    return ready
            except DatabaseUnavailableError:
                pass  # looked for again, as everything here
            await asyncio.sleep(_LOOK_SECONDS)

    async def _with_room(self) -> set[str]:
        await self._database.require_writable()
        cleared = self._budget.appservice_cleared_bytes
        async with self._database.transaction() as conn:
            full = await over_budget(conn, sorted(self._waiting), appservice_bytes=cleared)
        return self._waiting - full

    async def _wake_all(self, appservice_ids: set[str]) -> None:
        first, *others = sorted(appservice_ids)
        if not await self._wake(first):
            return  # nor would the others be heard
        async with asyncio.TaskGroup() as group:
            for appservice_id in others:
                group.create_task(self._wake(appservice_id), name=f"waker:{appservice_id}")

    async def _wake(self, appservice_id: str) -> bool:
        """Whether the homeserver was reached."""
        async with self._at_once:
            self._waiting.discard(appservice_id)  # before the ping: it may be refused meanwhile
            done = await self._ping(self._registrations[appservice_id])
            if not done:
                self._waiting.add(appservice_id)
            return done is not None

    async def _ping(self, registration: Registration) -> bool | None:
        """Whether nothing is left to do for this appservice; None: nobody was reached."""
        path = f"/_matrix/client/v1/appservice/{quote(registration.id, safe='')}/ping"
        try:
            async with self._session.post(
                URL(self._homeserver_url + path, encoded=True),
                json={"transaction_id": _PREFIX + secrets.token_hex(8)},
                headers={"Authorization": f"Bearer {registration.as_token}"},
                timeout=_TIMEOUT,
                allow_redirects=False,
            ) as response:
                status = response.status
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            log.info("homeserver.not_reached", reason=type(error).__name__)
            return None if isinstance(error, aiohttp.ClientConnectorError) else False
        if 200 <= status < 300:
            log.info("homeserver.woken", appservice=registration.id)
            return True
        log.warning("homeserver.not_woken", appservice=registration.id, status=status)
        return status < 500 and status not in (408, 429)  # other refusals will not change
