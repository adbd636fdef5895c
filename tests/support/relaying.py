"""A worker with appservices behind it, spoken to as the homeserver speaks to the relay."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
from yarl import URL

from tests.support.appservice import Appservice, appservice
from tests.support.bridge import Files, registration, worker, write_files

TRANSACTIONS: Final = "/_matrix/app/v1/transactions/"
PING: Final = "/_matrix/app/v1/ping"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the relay answered."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def errcode(self) -> str | None:
        found: dict[str, str] = json.loads(self.body)
        return found.get("errcode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Homeserver:
    """Sends what a homeserver sends; paths go over the wire as they are written here."""

    session: aiohttp.ClientSession
    relay_url: str

    async def ask(
        self,
        method: str,
        path: str,
        *,
        to: str = "bot",
        token: str | None = "hs_bot",
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One request to an appservice's place at the relay; `to` is percent-encoded already."""
        shown = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with self.session.request(
            method,
            URL(f"{self.relay_url}/appservice/{to}{path}", encoded=True),
            data=body,
            headers=shown | (headers or {}),
            allow_redirects=False,
        ) as response:
            return Answer(
                status=response.status,
                body=await response.read(),
                headers=dict(response.headers),
            )

    async def push(self, txn_id: str, body: bytes, **more: Any) -> int:
        """A transaction; the status it is answered."""
        return (await self.ask("PUT", TRANSACTIONS + txn_id, body=body, **more)).status


@asynccontextmanager
async def homeserver(files: Files) -> AsyncIterator[Homeserver]:
    """A homeserver that speaks to a relay, running or not."""
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        yield Homeserver(session=session, relay_url=files.relay_url)


@asynccontextmanager
async def relaying(
    directory: Path, database: str, registrations: Sequence[dict[str, Any]], **settings: Any
) -> AsyncIterator[Homeserver]:
    """A worker for these registrations, and the homeserver before it."""
    files = write_files(directory, database, registrations, **settings)
    async with worker(files), homeserver(files) as one:
        yield one


@asynccontextmanager
async def one_bot(
    directory: Path, database: str, **settings: Any
) -> AsyncIterator[tuple[Appservice, Homeserver]]:
    """A worker and a single appservice, whose id is bot."""
    async with (
        appservice() as bot,
        relaying(directory, database, [registration("bot", bot.url)], **settings) as one,
    ):
        yield bot, one
