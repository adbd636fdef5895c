"""What operators may change at the admin port: the same verbs as the commands."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from uuid import UUID

import aiohttp
from aiohttp import web

from appservice_bridge.config.loading import Loaded
from appservice_bridge.delivery import operating, replaying
from appservice_bridge.delivery import ping as asking
from appservice_bridge.delivery.ping import NotAnswered
from appservice_bridge.delivery.replaying import Kept
from appservice_bridge.domain.author import Author
from appservice_bridge.domain.owners import Owners
from appservice_bridge.http import admin_asked as asked
from appservice_bridge.http.admin_asked import NotUnderstoodError
from appservice_bridge.http.admin_auth import Role, needs, whoever_asks
from appservice_bridge.http.admin_looking import answer
from appservice_bridge.http.answers import error
from appservice_bridge.routing import resyncing
from appservice_bridge.routing.backfilling import Backfill
from appservice_bridge.storage.database import Database
from appservice_bridge.storage.letters import Letter
from appservice_bridge.storage.orders import Standing, UnknownAppserviceError

PING_SECONDS: Final = 10.0
MOST_LETTERS: Final = 1000
LONGEST_SINCE_SECONDS: Final = 10 * 365 * 86_400


class Orders:
    """Each is put down in the audit, with the name of the token that was shown."""

    def __init__(
        self, database: Database, of: Loaded, owners: Owners, session: aiohttp.ClientSession
    ) -> None:
        self._database = database
        self._owners = owners
        self._session = session
        self._reads_synapse = of.config.homeserver.capture != "none"
        self._registrations = {one.id: one for one in of.registrations}
        limit = of.config.budget.limits().appservice_bytes
        self._kept: Mapping[str, Kept] = {
            one.id: Kept(
                appservice_id=one.id,
                keep_seconds=of.config.settings(one).delivery.keep_delivered_seconds,
                appservice_bytes=limit,
            )
            for one in of.registrations
        }
        self._at_length = asyncio.Lock()

    def add_to(self, app: web.Application, root: str) -> None:
        """The routes, below `root`."""
        one = root + "/appservices/{appservice_id:[^/]+}"
        for path, handler in {
            one + "/pause": self._pause,
            one + "/resume": self._resume,
            one + "/retry": self._retry,
            one + "/ping": self._ping,
            one + "/replay": self._replay,
            one + "/resync": self._resync,
            one + "/backfill": self._backfill,
            root + "/dead-letters/redrive": self._redrive,
            root + "/dead-letters/discard": self._discard,
        }.items():
            app.router.add_post(path, handler)

    @needs(Role.OPERATOR)
    async def _pause(self, request: web.Request) -> web.Response:
        id_ = asked.appservice_id(request)
        await asked.members(request)
        standing = await operating.pause(self._database, id_, by=author(request))
        return _ordered(id_, "paused" if standing.paused_at is None else "was_paused", standing)

    @needs(Role.OPERATOR)
    async def _resume(self, request: web.Request) -> web.Response:
        id_ = asked.appservice_id(request)
        await asked.members(request)
        standing = await operating.resume(self._database, id_, by=author(request))
        return _ordered(id_, "resumed" if standing.paused_at else "was_not_paused", standing)

    @needs(Role.OPERATOR)
    async def _retry(self, request: web.Request) -> web.Response:
        id_ = asked.appservice_id(request)
        members = await asked.members(request, "split", "bury")
        split, by = _switch(members, "split"), author(request)
        if "bury" not in members:
            standing = await operating.retry(self._database, id_, by=by, split=split)
            return _ordered(id_, "retried", standing)
        if split:
            raise NotUnderstoodError("M_BAD_JSON", "give split or bury")
        txn_id = _plain(members["bury"], "bury")
        return _ordered(id_, "buries", await operating.bury(self._database, id_, txn_id, by=by))

    @needs(Role.OPERATOR)
    async def _ping(self, request: web.Request) -> web.Response:
        """Whether the appservice answers; one that does gets at once what it is owed."""
        id_ = asked.appservice_id(request)
        await asked.members(request)
        if id_ not in self._owners.registrations:
            raise UnknownAppserviceError(id_, self._owners.registrations)
        registration = self._registrations[id_]
        pinged = await asking.ping(self._session, registration, timeout_seconds=PING_SECONDS)
        if isinstance(pinged, NotAnswered):
            return answer(
                appservice=id_,
                outcome="not_answered",
                errcode=pinged.errcode,
                status=pinged.status,
                mend=pinged.mend,
            )
        await operating.answered(self._database, id_, by=author(request))
        return answer(
            appservice=id_,
            outcome="answered",
            status=pinged.status,
            milliseconds=round(pinged.milliseconds, 1),
        )

    @needs(Role.OPERATOR)
    async def _replay(self, request: web.Request) -> web.Response:
        id_ = asked.appservice_id(request)
        members = await asked.members(request, "since_seconds", "transaction")
        if len(members) != 1:
            raise NotUnderstoodError("M_BAD_JSON", "say either since_seconds or transaction")
        if id_ not in self._kept:
            raise UnknownAppserviceError(id_, self._kept)
        of, by = self._kept[id_], author(request)
        if "transaction" in members:
            txn_id = _plain(members["transaction"], "transaction")
            done = await replaying.replay_one(self._database, of, txn_id, by=by)
        else:
            seconds = _seconds(members["since_seconds"])
            done = await replaying.replay_since(self._database, of, seconds, by=by)
        items = {kind.value: count for kind, count in done.items.items()}
        return answer(
            appservice=id_, outcome="replayed", items=items, transactions=done.transactions
        )

    @needs(Role.OPERATOR)
    async def _resync(self, request: web.Request) -> web.Response:
        id_ = asked.appservice_id(request)
        await asked.members(request)

        async def work() -> web.Response:
            told = await resyncing.resync(
                self._database,
                self._owners,
                id_,
                reads_synapse=self._reads_synapse,
                by=author(request),
            )
            return answer(
                appservice=id_,
                outcome="resynced",
                changed=told.changed,
                left=told.left,
                devices=told.devices,
            )

        return await self._alone(work)

    @needs(Role.OPERATOR)
    async def _backfill(self, request: web.Request) -> web.Response:
        id_ = asked.appservice_id(request)
        dry_run = _switch(await asked.members(request, "dry_run"), "dry_run")
        inbox = Backfill(self._database, self._owners, id_, reads_synapse=self._reads_synapse)

        async def work() -> web.Response:
            found = await (inbox.look() if dry_run else inbox.run(by=author(request)))
            return answer(
                appservice=id_,
                outcome="counted" if dry_run else "backfilled",
                messages=found.messages,
                devices=found.devices,
            )

        return await self._alone(work)

    async def _alone(self, work: Callable[[], Awaitable[web.Response]]) -> web.Response:
        """What may take minutes is done once at a time; it goes on if who asked is gone."""
        if self._at_length.locked():
            return error(409, "M_UNKNOWN", "a resync or backfill is under way; ask again later")
        async with self._at_length:
            return await work()

    @needs(Role.OPERATOR)
    async def _redrive(self, request: web.Request) -> web.Response:
        ids = await _ids(request)
        found = await operating.named(self._database, ids)
        done: set[UUID] = set()
        for one in operating.by_appservice(found).items():
            done |= await operating.redrive(self._database, *one, by=author(request))
        refused = [one for one in found if one.dead_letter_id not in done]
        return answer(
            redriven=sorted(map(str, done)),
            refused=[
                {"id": str(o.dead_letter_id), "reason": operating.why_not(o)} for o in refused
            ],
            unknown=_unknown(ids, found),
        )

    @needs(Role.ADMIN)
    async def _discard(self, request: web.Request) -> web.Response:
        """It cannot be undone."""
        ids = await _ids(request)
        found = await operating.named(self._database, ids)
        done: set[UUID] = set()
        for one in operating.by_appservice(found).items():
            done |= await operating.discard(self._database, *one, by=author(request))
        return answer(discarded=sorted(map(str, done)), unknown=_unknown(ids, found))


def author(request: web.Request) -> Author:
    """Who gives the order, as the audit names them."""
    operator = whoever_asks()
    return Author(name=operator.name, role=operator.role.name.lower(), address=request.remote)


def _ordered(appservice_id: str, outcome: str, standing: Standing) -> web.Response:
    """Served: a worker that is alive sees to it now; else it waits for one."""
    return answer(
        appservice=appservice_id,
        outcome=outcome,
        in_flight=standing.in_flight,
        served=standing.served,
    )


def _switch(members: Mapping[str, Any], name: str) -> bool:
    given = members.get(name, False)
    if not isinstance(given, bool):
        raise NotUnderstoodError("M_BAD_JSON", f"{name} must be true or false")
    return given


def _seconds(given: object) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not given > 0:
        raise NotUnderstoodError("M_BAD_JSON", "since_seconds must be a number above 0")
    return float(min(given, LONGEST_SINCE_SECONDS))


def _plain(given: object, name: str) -> str:
    if not isinstance(given, str) or not asked.is_text(given):
        raise NotUnderstoodError("M_BAD_JSON", f"{name} must be plain text")
    return given


async def _ids(request: web.Request) -> list[UUID]:
    given = (await asked.members(request, "ids")).get("ids")
    if not isinstance(given, list) or not 0 < len(given) <= MOST_LETTERS:
        raise NotUnderstoodError("M_BAD_JSON", f"ids must be a list of 1 to {MOST_LETTERS} ids")
    try:
        return [UUID(one) for one in dict.fromkeys(given)]
    except (ValueError, TypeError, AttributeError):
        reason = "ids must be those of dead letters, in full"
        raise NotUnderstoodError("M_BAD_JSON", reason) from None


def _unknown(ids: list[UUID], found: list[Letter]) -> list[str]:
    there = {one.dead_letter_id for one in found}
    return [str(one) for one in ids if one not in there]
