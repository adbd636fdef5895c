"""What an operator sees of all appservices at one look, as the admin port tells it."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from appservice_bridge.config.loading import Loaded
from appservice_bridge.delivery.diagnosis import Diagnosis, diagnose
from appservice_bridge.delivery.history import History
from appservice_bridge.domain.lane_state import LaneState
from appservice_bridge.domain.registration import Registration
from appservice_bridge.domain.transport import Transport
from appservice_bridge.domain.waiting import in_turns
from appservice_bridge.storage import overview, whole
from appservice_bridge.storage.capture_state import CaptureState
from appservice_bridge.storage.database import Connection, Database
from appservice_bridge.storage.overview import LaneView, WorkerView

VERSION: Final = 1

_NOT_WANTED: Final = "the configuration gives it no transport: nothing is kept or sent for it"
_NO_LANE: Final = "no worker has announced it yet"
_ZERO: Final = (
    "backlog",
    "device_updates",
    "bytes_waiting",
    "bytes_kept",
    "failed_attempts",
    "dead_letters",
    "delivered",
)
_NOTHING: Final = (
    "oldest_waiting_seconds",
    "oldest_to_device_seconds",
    "last_outcome",
    "last_status",
    "last_attempt_ts",
    "last_ack_ts",
    "due_in_seconds",
    "paused_since",
    "worker",
    "per_second",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """How an appservice is reached.

    Attributes:
        transport: `none`: not at all.
        host: of its url, with the port; None where it comes to us.
    """

    transport: str
    host: str | None


class Overview:
    """The one answer that the list, the stream of events and the page of an appservice share."""

    def __init__(self, database: Database, of: Loaded, history: History) -> None:
        self._database = database
        self._of = of
        self._history = history
        self._places = {one.id: _place(one, of) for one in of.registrations}
        self._transports = {
            id_: Transport(place.transport)
            for id_, place in self._places.items()
            if place.transport != "none"
        }

    async def body(self) -> bytes:
        """The whole of it, as JSON.

        Raises:
            DatabaseUnavailableError: as it says.
        """
        async with self._database.statement() as conn:  # each is one: they share no snapshot
            told: dict[str, Any] = {
                "version": VERSION,
                "appservices": await self.appservices(conn),
                "homeserver": await self._homeserver(conn),
                "workers": [_worker(one) for one in await overview.workers(conn)],
            }
        return orjson.dumps(told)

    async def appservices(
        self, conn: Connection, *, only: str | None = None
    ) -> list[dict[str, Any]]:
        """Every lane, and every registration that has none, by id; or only one of them."""
        rates = self._history.rates()
        found = {
            lane.appservice_id: appservice(
                lane, self._places.get(lane.appservice_id), rates.get(lane.appservice_id)
            )
            async for lane in in_turns(await overview.lanes(conn, self._transports, only=only))
        }
        for id_, place in self._places.items():
            if id_ not in found and only in {None, id_}:
                found[id_] = _without_lane(id_, place)
        return [found[id_] for id_ in sorted(found)]

    async def _homeserver(self, conn: Connection) -> dict[str, Any]:
        homeserver, limits = self._of.config.homeserver, self._of.config.budget.limits()
        seen = await whole.look(conn)
        state = seen.capture
        return {
            "server_name": homeserver.server_name,
            "kind": homeserver.kind,
            "well": state.mode == homeserver.capture
            and not (state.problems or seen.keys_only or seen.silent),
            "capture": _capture(homeserver.capture, state),
            "captured": seen.captured,
            "budget": {
                "used_bytes": seen.used_bytes,
                "limit_bytes": limits.total_bytes,
                "appservice_limit_bytes": limits.appservice_bytes,
                "used_up": seen.keys_only,
            },
        }


def appservice(
    lane: LaneView, place: Place | None, per_second: float | None = None
) -> dict[str, Any]:
    """One appservice; times are milliseconds since 1970."""
    found = diagnose(lane)
    if found.state is LaneState.UNREGISTERED and place is not None and place.transport == "none":
        found = dataclasses.replace(found, why=_NOT_WANTED, mend=None)
    return {
        **_diagnosis(lane.appservice_id, found),
        "backlog": lane.waiting,
        "device_updates": lane.device_updates,
        "bytes_waiting": lane.waiting_bytes,
        "bytes_kept": lane.kept_bytes,
        "oldest_waiting_seconds": lane.oldest_seconds,
        "oldest_to_device_seconds": lane.oldest_to_device_seconds,
        "failed_attempts": lane.failed_attempts,
        "last_outcome": lane.last_outcome,
        "last_status": lane.last_status,
        "last_attempt_ts": ms(lane.last_attempt_at),
        "last_ack_ts": ms(lane.last_ack_at),
        "due_in_seconds": None if math.isinf(lane.rest_seconds) else lane.rest_seconds,
        "paused_since": ms(lane.paused_at),
        "worker": lane.worker,
        "transport": None if place is None else place.transport,
        "url_host": None if place is None else place.host,
        "dead_letters": lane.dead_letters,
        "delivered": lane.delivered,
        "per_second": per_second,
    }


def ms(at: datetime | None) -> int | None:
    """Milliseconds since 1970."""
    return None if at is None else round(at.timestamp() * 1000)


def _diagnosis(appservice_id: str, found: Diagnosis) -> dict[str, Any]:
    return {
        "id": appservice_id,
        "state": found.state,
        "well": found.well,
        "not_well_since": ms(found.since),
        "why": found.why,
        "mend": found.mend,
    }


def _without_lane(appservice_id: str, place: Place) -> dict[str, Any]:
    """One that is not to get anything is well; the other gets its lane in a moment."""
    wanted = place.transport != "none"
    state = LaneState.UNSERVED if wanted else LaneState.NO_TRANSPORT
    found = Diagnosis(state=state, why=_NO_LANE if wanted else _NOT_WANTED)
    nothing: Mapping[str, Any] = dict.fromkeys(_NOTHING)
    return {
        **nothing,
        **dict.fromkeys(_ZERO, 0),
        **_diagnosis(appservice_id, found),
        "transport": place.transport,
        "url_host": place.host,
    }


def _capture(wanted: str, state: CaptureState) -> dict[str, Any]:
    return {
        "wanted": wanted,
        "mode": state.mode,
        "since": ms(state.since),
        "looked_at": ms(state.looked_at),
        "problems": list(state.problems),
        "left_out": sorted(state.unreadable),
    }


def _worker(one: WorkerView) -> dict[str, Any]:
    return {
        "id": str(one.worker_id),
        "name": one.name,
        "alive": one.alive,
        "started_at": ms(one.started_at),
        "alive_until": ms(one.alive_until),
        "lanes": one.lanes,
    }


def _place(registration: Registration, of: Loaded) -> Place:
    """Of a url only host and port: the rest may hold a secret."""
    transport = of.config.settings(registration).transport
    host = None
    if transport == "http" and registration.url is not None:
        host = urlsplit(registration.url).netloc.rpartition("@")[2] or None
    return Place(transport=transport, host=host)
