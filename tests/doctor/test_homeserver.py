"""What `doctor` finds by asking the homeserver: a stand-in answers as one does that is not well."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from appservice_bridge.doctor.finding import Finding, Level
from appservice_bridge.doctor.homeserver import HomeserverAsked
from appservice_bridge.domain.supported import NEWEST_SYNAPSE, OLDEST_SYNAPSE
from appservice_bridge.http.wake_homeserver import PROBE_STATUS
from tests.support.bridge import SERVER, registration, write_files

PREFIX = "M_"
AT_RELAY = {"errcode": f"{PREFIX}BAD_STATUS", "status": PROBE_STATUS}


@dataclass(kw_only=True)
class StandIn:
    """NOT a homeserver: it answers doctor's four questions, and is well at first."""

    release: str = NEWEST_SYNAPSE
    server_name: str | None = SERVER
    ahead: timedelta = timedelta()
    ping_status: int = 502
    ping: dict[str, Any] = field(default_factory=lambda: dict(AT_RELAY))

    async def handle(self, request: web.Request) -> web.Response:
        date = {"Date": format_datetime(datetime.now(UTC) + self.ahead, usegmt=True)}
        if request.path.endswith("/ping"):
            return web.json_response(self.ping, status=self.ping_status, headers=date)
        if request.path == "/_matrix/key/v2/server":
            status = 404 if self.server_name is None else 200
            told = {"server_name": self.server_name}
            return web.json_response(told, status=status, headers=date)
        return web.json_response({"server_version": self.release}, headers=date)


Examine = Callable[[StandIn], Any]


@asynccontextmanager
async def served(one: StandIn) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", one.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


@pytest.fixture
def examine(tmp_path: Path) -> Examine:
    async def found(one: StandIn) -> list[Finding]:
        async with served(one) as url, aiohttp.ClientSession() as session:
            bots = [registration("bot", "http://127.0.0.1:9")]
            nowhere = "postgresql://nobody@127.0.0.1:9/none"
            files = write_files(tmp_path, nowhere, bots, homeserver_url=url)
            return [each async for each in HomeserverAsked(session, files.load()).findings()]

    return found


async def test_nothing_is_found_of_one_that_is_well(examine: Examine) -> None:
    assert await examine(StandIn()) == []


async def test_a_homeserver_of_another_name_is_found_where_it_says_it(examine: Examine) -> None:
    assert await examine(StandIn(server_name=None)) == []
    (one,) = await examine(StandIn(server_name="other.org"))
    assert (one.code, one.level) == ("server_name", Level.FAULT)
    assert "`homeserver.server_name: other.org`" in one.mend


@pytest.mark.parametrize(
    ("ahead", "said"),
    [(timedelta(minutes=5), "ahead of ours"), (-timedelta(minutes=5), "behind ours")],
)
async def test_a_clock_that_is_off_is_found(examine: Examine, ahead: timedelta, said: str) -> None:
    (one,) = await examine(StandIn(ahead=ahead))
    assert (one.code, one.level) == ("clock_skew", Level.DOUBT)
    assert said in one.what
    assert "chrony" in one.mend


async def test_an_old_homeserver_is_found(examine: Examine) -> None:
    (one,) = await examine(StandIn(release="1.98.0"))
    assert (one.code, one.level) == ("homeserver_old", Level.FAULT)
    assert "1.98.0" in one.what
    assert f"upgrade to Synapse {OLDEST_SYNAPSE}" in one.mend


@pytest.mark.parametrize(
    ("status", "answer", "code"),
    [
        (200, {"duration_ms": 1}, "not_at_relay"),
        (400, {"errcode": f"{PREFIX}URL_NOT_SET"}, "not_at_relay"),
        (502, {"errcode": f"{PREFIX}BAD_STATUS", "status": 404}, "not_at_relay"),
        (502, {"errcode": f"{PREFIX}BAD_STATUS", "status": 403}, "token_mismatch"),
        (401, {"errcode": "M_UNKNOWN_TOKEN"}, "token_mismatch"),
        (502, {"errcode": f"{PREFIX}CONNECTION_FAILED"}, "relay_unreachable"),
    ],
)
async def test_a_registration_that_does_not_lead_to_the_relay_is_found_as_the_homeserver_runs(
    examine: Examine, status: int, answer: dict[str, Any], code: str
) -> None:
    (one,) = await examine(StandIn(ping_status=status, ping=answer))
    assert (one.code, one.level, one.appservice) == (code, Level.FAULT, "bot")
    if code == "token_mismatch":
        assert "registration for-homeserver" in one.mend
    else:
        assert '/appservice/bot"`' in one.mend


async def test_a_homeserver_that_has_no_ping_is_in_doubt(examine: Examine) -> None:
    (one,) = await examine(StandIn(ping_status=404, ping={"errcode": "M_UNRECOGNIZED"}))
    assert (one.code, one.level) == ("not_asked", Level.DOUBT)
