"""Ends the homeserver's backoff: it pings itself through the homeserver when it can store again."""

import asyncio
import secrets
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

import aiohttp
import structlog
from yarl import URL

from appservice_bridge.domain.backoff import Backoff
from appservice_bridge.domain.registration import Registration
from appservice_bridge.storage.database import Database, DatabaseUnavailableError

log = structlog.get_logger(__name__)

_PREFIX: Final = "ab-wake-"
_TRIES: Final = 12  # with the backoff below about eight minutes, the homeserver's own longest rest


def is_own_ping(transaction_id: object) -> bool:
    """Whether a ping that the homeserver brings was ours, and so must not reach the appservice."""
    return isinstance(transaction_id, str) and transaction_id.startswith(_PREFIX)


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
    ) -> None:
        self._database = database
        self._session = session
        self._homeserver_url = homeserver_url.rstrip("/")
        self._registrations = registrations
        self._waiting = set(registrations)
        self._refused = asyncio.Event()
        self._refused.set()  # the bridge may have been away: at the start everyone is woken

    def refused(self, appservice_id: str) -> None:
        """The homeserver was answered 503 and rests now."""
        self._waiting.add(appservice_id)
        self._refused.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Wake the homeserver after every outage, until `stop` is set."""
        backoff = Backoff(first_seconds=0.5, ceiling_seconds=60)
        stopping = asyncio.create_task(stop.wait())
        tries = 0
        while not stop.is_set():
            if not self._waiting or tries >= _TRIES:
                self._refused.clear()
                refused = asyncio.create_task(self._refused.wait())
                await asyncio.wait({refused, stopping}, return_when=asyncio.FIRST_COMPLETED)
                refused.cancel()
                tries = 0
                continue
            tries += 1
            if await self._can_store():
                for appservice_id in sorted(self._waiting):
                    if await self._ping(self._registrations[appservice_id]):
                        self._waiting.discard(appservice_id)
            if self._waiting:
                await asyncio.wait({stopping}, timeout=backoff.rest(tries))

    async def _can_store(self) -> bool:
        try:
            await self._database.require_writable()
        except DatabaseUnavailableError:
            return False
        return True

    async def _ping(self, registration: Registration) -> bool:
        """Whether nothing is left to do for this appservice."""
        path = f"/_matrix/client/v1/appservice/{quote(registration.id, safe='')}/ping"
        try:
            async with self._session.post(
                URL(self._homeserver_url + path, encoded=True),
                json={"transaction_id": _PREFIX + secrets.token_hex(8)},
                headers={"Authorization": f"Bearer {registration.as_token}"},
                timeout=aiohttp.ClientTimeout(total=10),
                allow_redirects=False,
            ) as response:
                status = response.status
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            log.info("homeserver.not_reached", reason=type(error).__name__)
            return False
        if status == 200:
            log.info("homeserver.woken", appservice=registration.id)
            return True
        log.warning("homeserver.not_woken", appservice=registration.id, status=status)
        return status < 500  # a 4xx will not change; a 502 says that it cannot reach the relay
