"""What operators may look at: appservices, transactions, dead letters, history; never payloads."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import orjson
from aiohttp import web

from appservice_bridge.delivery.history import SLOTS, History
from appservice_bridge.domain.device_updates import DeviceKeys
from appservice_bridge.http import admin_asked as asked
from appservice_bridge.http.admin_auth import Role, needs, whoever_asks
from appservice_bridge.http.admin_overview import VERSION, Overview, ms
from appservice_bridge.storage import (
    admin_audit,
    device_updates,
    letters,
    orders,
    overview,
    owed,
    shipments,
)
from appservice_bridge.storage.admin_audit import Entry
from appservice_bridge.storage.database import Connection, Database
from appservice_bridge.storage.letters import Letter
from appservice_bridge.storage.orders import UnknownAppserviceError
from appservice_bridge.storage.owed import OwedTransaction
from appservice_bridge.storage.shipments import Shipment

FEW_KEYS: Final = 10
MOST_DEVICES: Final = 1000
MOST_COUNTED: Final = 10_000
_ALWAYS: Final = "signed_curve25519"
_HOUR_MINUTES: Final = SLOTS // 6


class Looking:
    """Answers that change nothing."""

    def __init__(self, database: Database, shown: Overview, history: History) -> None:
        self._database = database
        self._shown = shown
        self._history = history

    def add_to(self, app: web.Application, root: str) -> None:
        """The routes, below `root`."""
        one = root + "/appservices/{appservice_id:[^/]+}"
        for path, handler in {
            root + "/whoami": self._whoami,
            root + "/appservices": self._appservices,
            one: self._appservice,
            one + "/transactions": self._transactions,
            one + "/dead-letters": self._dead_letters,
            root + "/history": self._points,
            root + "/audit": self._audit,
        }.items():
            app.router.add_get(path, handler)

    @needs(Role.VIEWER)
    async def _whoami(self, _request: web.Request) -> web.Response:
        operator = whoever_asks()
        return answer(name=operator.name, role=operator.role.name.lower())

    @needs(Role.VIEWER)
    async def _appservices(self, _request: web.Request) -> web.Response:
        return web.Response(body=await self._shown.body(), content_type="application/json")

    @needs(Role.VIEWER)
    async def _appservice(self, request: web.Request) -> web.Response:
        id_ = asked.appservice_id(request)
        async with self._database.transaction() as conn:
            found = await self._shown.appservices(conn, only=id_)
            if not found:
                raise UnknownAppserviceError(id_, await orders.known(conn))
            return answer(**found[0], **await _details(conn, id_))

    @needs(Role.VIEWER)
    async def _transactions(self, request: web.Request) -> web.Response:
        id_, most = asked.appservice_id(request), asked.limit(request)
        last = shipments.LAST_NUMBER
        before = asked.number(request, "before", least=0, most=last, default=last)
        async with self._database.transaction() as conn:
            await require_known(conn, id_)
            found, first = await shipments.newest(conn, id_, before=before, most=most)
        more = found[-1].number if len(found) == most else None
        return answer(transactions=[_shipment(one, first) for one in found], before=more)

    @needs(Role.VIEWER)
    async def _dead_letters(self, request: web.Request) -> web.Response:
        id_, most = asked.appservice_id(request), asked.limit(request)
        after = asked.position(request, "after")
        async with self._database.transaction() as conn:
            await require_known(conn, id_)
            found = await letters.page(conn, id_, after=after, most=most)
        more = asked.as_position(found[-1].buried_at, found[-1].dead_letter_id) if found else None
        return answer(
            dead_letters=[_letter(one) for one in found],
            after=more if len(found) == most else None,
        )

    @needs(Role.ADMIN)
    async def _audit(self, request: web.Request) -> web.Response:
        """Who changed what; it names the operators and where they were."""
        most, last = asked.limit(request), admin_audit.NEWEST
        before = asked.number(request, "before", least=0, most=last, default=last)
        async with self._database.transaction() as conn:
            found = await admin_audit.page(conn, before=before, most=most)
        more = found[-1].audit_id if len(found) == most else None
        return answer(entries=[_entry(one) for one in found], before=more)

    @needs(Role.VIEWER)
    async def _points(self, request: web.Request) -> web.Response:
        minutes = asked.number(
            request, "minutes", least=1, most=_HOUR_MINUTES, default=_HOUR_MINUTES
        )
        points = self._history.points(asked.text(request, "appservice"), minutes=minutes)
        return answer(points=[asdict(one) for one in points])


def answer(**members: Any) -> web.Response:
    """What every answer of the admin port looks like."""
    body = orjson.dumps({"version": VERSION, **members})
    return web.Response(body=body, content_type="application/json")


async def require_known(conn: Connection, appservice_id: str) -> None:
    """Refuse an appservice that has no lane.

    Raises:
        UnknownAppserviceError: as it says.
    """
    known = await orders.known(conn)
    if appservice_id not in known:
        raise UnknownAppserviceError(appservice_id, known)


async def _details(conn: Connection, appservice_id: str) -> dict[str, Any]:
    waiting = await overview.waiting_kinds(conn, appservice_id, most=MOST_COUNTED)
    sealed = await owed.owed(conn, appservice_id)
    last = await owed.last(conn, appservice_id)
    devices = await device_updates.known_keys(conn, appservice_id, most=MOST_DEVICES)
    return {
        "devices": sorted(map(_device, devices), key=lambda one: not one["low"]),
        "waiting": waiting,
        "in_flight": _in_flight(sealed[0], last.failed_attempts) if sealed and last else None,
        "body_cap_bytes": last.body_cap_bytes if last else None,
        "split_asked_since": ms(last.split_asked_at) if last else None,
    }


def _in_flight(one: OwedTransaction, failed_attempts: int) -> dict[str, Any]:
    return {
        "txn_id": one.txn_id,
        "items": one.items,
        "device_lists": one.device_lists,
        "device_keys": one.device_keys,
        "bytes": one.body_bytes,
        "attempts": failed_attempts,
        "doubtful": one.doubtful,
        "refusals": one.refusals,
        "refused_since": ms(one.refused_since),
        "sealed_at": ms(one.sealed_at),
        "bury_asked_since": ms(one.bury_asked_at),
    }


def _device(keys: DeviceKeys) -> dict[str, Any]:
    """Low: nobody new can write to it in secret soon, or only as long as a fallback key holds."""
    counts: Mapping[str, int] | None = keys.counts
    left = None if counts is None else counts.get(_ALWAYS, 0)
    why = None
    if left is not None and left < FEW_KEYS:
        why = f"{left} one-time keys are left; it must upload more"
        if keys.fallback_types == ():
            why += ", and its fallback key is used, or it has none"
    return {
        "user_id": keys.user_id,
        "device_id": keys.device_id,
        "one_time_keys": None if counts is None else {_ALWAYS: 0} | dict(counts),
        "unused_fallback": None if keys.fallback_types is None else list(keys.fallback_types),
        "low": why is not None,
        "why": why,
    }


def _letter(one: Letter) -> dict[str, Any]:
    return {
        "id": str(one.dead_letter_id),
        "kind": one.kind,
        "reason": one.reason,
        "status": one.status,
        "errcode": one.errcode,
        "txn_id": one.txn_id,
        "user_id": one.user_id,
        "device_id": one.device_id,
        "bytes": one.bytes,
        "buried_at": ms(one.buried_at),
        "redrivable": one.redrivable,
    }


def _entry(one: Entry) -> dict[str, Any]:
    return {
        "id": one.audit_id,
        "at": ms(one.at),
        "name": one.name,
        "role": one.role,
        "address": one.address,
        "action": one.action,
        "appservice": one.appservice_id,
        "subjects": list(one.subjects),
        "outcome": one.outcome,
    }


def _shipment(one: Shipment, first: int | None) -> dict[str, Any]:
    state = "acknowledged" if one.acked_at else "waits"
    return {
        "txn_id": one.txn_id,
        "number": one.number,
        "state": "in_flight" if one.number == first and one.acked_at is None else state,
        "items": json.loads(one.kinds),
        "items_total": one.items,
        "device_lists": one.device_lists,
        "device_keys": one.device_keys,
        "bytes": one.bytes,
        "sealed_at": ms(one.sealed_at),
        "acked_at": ms(one.acked_at),
        "refusals": one.refusals,
        "doubtful": one.doubtful,
        "part_of": one.part_of,
    }
