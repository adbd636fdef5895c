"""What Synapse committed and what it shows, for those who find the events that did not come."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from appservice_bridge.domain.owners import Owners
from appservice_bridge.routing.intake import Intake
from appservice_bridge.sources.event_recovery import EventRecovery
from appservice_bridge.sources.forgotten_events import ForgottenEvents
from appservice_bridge.sources.room_order import RoomOrder
from appservice_bridge.storage import capture_log
from appservice_bridge.storage.database import Database
from tests.support.facts import Connection, make_synapse_tables
from tests.support.intake import registered

ROOM = "!room"
PUPPET = "@b_1:example.org"


@dataclass(kw_only=True)
class Shown:
    """Stands for the homeserver's /event: what it shows to whom, or how it fails."""

    url: str = ""
    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[str | None] = field(default_factory=list)
    fails: tuple[int, str] | None = None

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(request.query.get("user_id"))
        if self.fails is not None:
            return web.Response(status=self.fails[0], text=self.fails[1])
        event = self.events.get(request.match_info["event_id"])
        if event is None:
            return web.json_response({"errcode": "M_NOT_FOUND", "error": ""}, status=404)
        return web.json_response(event)


@asynccontextmanager
async def homeserver_that_shows() -> AsyncIterator[Shown]:
    """Serve it, for as long as the context lasts."""
    one = Shown()
    app = web.Application()
    app.router.add_get("/_matrix/client/v3/rooms/{room_id}/event/{event_id}", one.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    one.url = f"http://{host}:{port}"
    yield one
    await runner.cleanup()


@asynccontextmanager
async def one_room(
    pg: Connection, db: Database, intake: Intake, shown: Shown
) -> AsyncIterator["Lab"]:
    """A room that the puppet has joined, of which the first event came; the cursor is at 1."""
    await make_synapse_tables(pg)
    await pg.execute(
        "insert into public.local_current_membership (room_id, user_id, event_id, membership)"
        " values ($1, $2, '$join', 'join')",
        ROOM,
        PUPPET,
    )
    async with aiohttp.ClientSession() as session:
        owners = registered(("bot", "@b_.*"))
        one = Lab(pg=pg, intake=intake, shown=shown, db=db, session=session, owners=owners)
        await one.say(1)
        await one.relayed("$1")
        await one.reach(1)
        await one.finder().look_once()
        assert await one.cursor() == 1
        yield one


@dataclass(kw_only=True)
class Lab:
    """Synapse's tables, who finds what did not come, and what the appservice would get."""

    pg: Connection
    intake: Intake
    shown: Shown
    db: Database
    session: aiohttp.ClientSession
    owners: Owners
    before: Callable[[Connection], Awaitable[None]] | None = None

    def finder(self, *, quiet: float = 0.0, resting: float = 0.0) -> ForgottenEvents:
        return ForgottenEvents(
            self.db,
            self.owners,
            self._recovery(),
            quiet_seconds=quiet,
            resting_seconds=resting,
        )

    def room_order(self) -> RoomOrder:
        return RoomOrder(self.db, self._recovery())

    def _recovery(self) -> EventRecovery:
        url = self.shown.url
        if self.before is None:
            return EventRecovery(self.db, self.owners, self.session, url)
        return EventRecovery(self.db, self.owners, self.session, url, before=self.before)

    async def say(
        self, at: int, *, room: str = ROOM, kind: str = "m.x", shows: bool = True, days_ago: int = 0
    ) -> str:
        """An event that Synapse has committed."""
        event_id = f"${at}"
        await self.pg.execute(
            "insert into public.events (stream_ordering, topological_ordering, event_id, type,"
            " room_id, processed, outlier, sender, received_ts)"
            " values ($1, $1, $2, $4, $3, true, false, '@alice:example.org',"
            "         extract(epoch from now() - make_interval(days => $5)) * 1000)",
            at,
            event_id,
            room,
            kind,
            days_ago,
        )
        if shows:
            self.shown.events[event_id] = {
                "event_id": event_id,
                "type": kind,
                "content": {"n": at},
                "unsigned": {"membership": "join", "age": 1},
            }
        return event_id

    async def keep(self, at: int) -> None:
        """The event as Synapse stores it."""
        pdu = {
            "type": "m.x",
            "sender": "@alice:example.org",
            "content": {"n": at},
            "origin_server_ts": 5,
            "unsigned": {"age_ts": 5},
        }
        await self.pg.execute(
            "insert into public.event_json (event_id, room_id, internal_metadata, json)"
            " values ($1, $2, '{}', $3)",
            f"${at}",
            ROOM,
            json.dumps(pdu),
        )

    async def reach(self, position: int) -> None:
        """Synapse has handed all up to here to its own sender."""
        await self.pg.execute(
            "update public.appservice_stream_position set stream_ordering = $1", position
        )

    async def stored(self, *event_ids: str) -> None:
        """A transaction of the homeserver that intake has yet to look at."""
        body = json.dumps({"events": [{"event_id": one} for one in event_ids]}).encode()
        async with self.db.transaction() as conn:
            await capture_log.append_transaction(conn, "bot", txn_id=str(event_ids), body=body)

    async def relayed(self, *event_ids: str) -> None:
        """A transaction of the homeserver, long enough ago."""
        await self.stored(*event_ids)
        await self.intake.consume_once()
        await self.pg.execute(
            "update appservice_bridge.relayed set received_at = now() - interval '1 hour'"
        )

    async def got(self) -> list[str]:
        """Event ids in the outbox, in order."""
        while not (await self.intake.consume_once()).done:
            pass
        rows = await self.pg.fetch(
            "select payload from appservice_bridge.outbox where kind = 'event' order by position"
        )
        return [json.loads(row["payload"])["event_id"] for row in rows]

    async def counted(self, outcome: str) -> int:
        found = await self.pg.fetchval(
            "select coalesce(sum(items), 0)::int from appservice_bridge.ledger"
            " where kind = 'event' and outcome = $1",
            outcome,
        )
        return int(found)

    async def cursor(self) -> int | None:
        query = "select settled from appservice_bridge.event_cursor where appservice_id = 'bot'"
        settled: int | None = await self.pg.fetchval(query)
        return settled


def of(*event_ids: str, room: str = ROOM) -> bytes:
    """A transaction with these events."""
    events = [{"event_id": one, "room_id": room} for one in event_ids]
    return json.dumps({"events": events}).encode()


async def store(lab: Lab, order: RoomOrder, *event_ids: str) -> None:
    """As the relay does it."""
    async with order.kept("bot", of(*event_ids)):
        await lab.relayed(*event_ids)
