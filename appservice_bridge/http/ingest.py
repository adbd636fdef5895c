"""What any other homeserver hands over: batches of facts, signed with its key."""

import asyncio
import json
from collections import Counter
from collections.abc import Container, Sequence
from typing import Final

import structlog
from aiohttp import web

from appservice_bridge.domain.budget import Budget
from appservice_bridge.domain.facts import Fact
from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.domain.owners import Owners
from appservice_bridge.http.answers import error
from appservice_bridge.http.batch import Batch, RefusedBatchError, Verdict, judge, read_batch
from appservice_bridge.http.homeserver_keys import HomeserverKeys, KeysUnavailableError
from appservice_bridge.http.signatures import require_signature
from appservice_bridge.storage import ingest, ledger
from appservice_bridge.storage.budget import OverBudgetError, is_used_up, over_budget
from appservice_bridge.storage.database import Connection, Database, DatabaseUnavailableError
from appservice_bridge.storage.ledger import LedgerKey

log = structlog.get_logger(__name__)

PATH: Final = "/_appservice_bridge/v1/facts/{batch_id:(?s:.+)}"
_BATCH: Final = "batch"
_WAITING: Final = frozenset({"to_device", "room_event", "ephemeral"})
"""Kinds of facts that wait one by one, and so take room; of the others only the latest waits."""
_NO_ROOM: Final = {
    "status": "refused",
    "errcode": "M_LIMIT_EXCEEDED",
    "error": "too much waits for whoever it is for: send it again later, in another batch",
}


class Ingest:
    """Stores batches of facts; each is answered once it is committed, with a verdict per fact.

    It stands on the relay's listener and on no other: that is the one that the homeserver reaches
    and operators need not, and what authenticates here is a signature and no operator's token.

    Dying before the commit leaves nothing behind. Dying between commit and answer makes the
    homeserver send the batch again; it is known by its id and digest then, nothing is stored, and
    the answer is the one that was lost.
    """

    def __init__(
        self,
        database: Database,
        owners: Owners,
        registered: Container[str],
        keys: HomeserverKeys,
        budget: Budget = Budget(),  # noqa: B008 - frozen
    ) -> None:
        self._database = database
        self._owners = owners
        self._registered = registered
        self._keys = keys
        self._budget = budget

    def add_to(self, app: web.Application) -> None:
        """Add the route to the relay's application, which bounds bodies and shapes errors."""
        app.router.add_put(PATH, self._put)

    async def _put(self, request: web.Request) -> web.Response:
        try:
            batch = await self._authentic(request)
            answer = await self._take(batch)
        except RefusedBatchError as refused:
            log.warning("ingest.refused", errcode=refused.errcode, reason=refused.message)
            return error(refused.status, refused.errcode, refused.message)
        except OverBudgetError:
            log.warning("ingest.over_budget")
            return error(503, "M_LIMIT_EXCEEDED", "no room for it now; send it again")
        except (DatabaseUnavailableError, KeysUnavailableError) as unavailable:
            log.warning("ingest.rests", reason=unavailable.reason)
            return error(503, "M_UNKNOWN", "appservice_bridge cannot take it now; send it again")
        return web.Response(body=answer, content_type="application/json")

    async def _authentic(self, request: web.Request) -> Batch:
        try:
            body = await request.read()
        except web.RequestPayloadError:
            raise RefusedBatchError(400, "M_NOT_JSON", "the body cannot be decompressed") from None
        batch = await asyncio.to_thread(read_batch, body)
        if batch.origin != self._owners.server_name:
            raise RefusedBatchError(403, "M_FORBIDDEN", "origin is not the homeserver's name")
        if batch.batch_id != request.match_info["batch_id"]:
            raise RefusedBatchError(
                400, "M_INVALID_PARAM", "batch_id is not the one in the request's path"
            )
        await require_signature(batch, self._keys)
        return batch

    async def _take(self, batch: Batch) -> bytes:
        """Store a batch, unless it was; the body of its answer, which is the same either way."""
        judged = await asyncio.to_thread(judge, batch, self._registered, self._wanted)
        async with self._database.transaction() as conn:
            verdicts = await self._with_room(conn, judged)
            answer = json.dumps({"results": [verdict.told for verdict in verdicts]}).encode()
            if await ingest.remember(conn, batch.batch_id, digest=batch.digest, answer=answer):
                batch.require_age(await ingest.age_seconds(conn, batch.origin_server_ts))
                if await is_used_up(conn):  # ingested payloads are nowhere else
                    raise OverBudgetError
                await _store(conn, verdicts)
                return answer
            known = _same(await ingest.recall(conn, batch.batch_id), batch.digest)
            await ledger.count(conn, {LedgerKey("", _BATCH, LedgerOutcome.REPEATED): 1})
        return known.answer

    async def _with_room(self, conn: Connection, verdicts: list[Verdict]) -> list[Verdict]:
        """The verdicts, with a refusal of each fact that is only for appservices over budget.

        Its neighbours go on: who is dead and has too much waiting costs nobody else.
        """
        recipients = [self._recipients(verdict) for verdict in verdicts]
        concerned = sorted({id_ for ids in recipients for id_ in ids})
        limit = self._budget.appservice_bytes
        full = await over_budget(conn, concerned, appservice_bytes=limit) if concerned else set()
        return [
            Verdict(kind=verdict.kind, fact=None, told=_NO_ROOM)
            if ids and full.issuperset(ids)
            else verdict
            for verdict, ids in zip(verdicts, recipients, strict=True)
        ]

    def _recipients(self, verdict: Verdict) -> Sequence[str]:
        """In whose outboxes a fact would wait."""
        fact = verdict.fact
        if fact is None or verdict.kind not in _WAITING or not self._wanted(fact):
            return ()
        if fact.owner_of is not None:
            return self._owners.of(fact.owner_of)
        return (str(fact.appservice_id),)

    def _wanted(self, fact: Fact) -> bool:
        """Whether anyone takes it, as far as is known here; intake has the last word."""
        if fact.owner_of is not None:
            return bool(self._owners.of(fact.owner_of))
        if fact.of_devices:
            return self._owners.takes_encryption(str(fact.appservice_id))
        return fact.appservice_id in self._owners.registrations


def _same(known: ingest.Remembered | None, digest: bytes) -> ingest.Remembered:
    if known is None:
        raise DatabaseUnavailableError("the batch was forgotten this moment")
    if known.digest != digest:
        raise RefusedBatchError(
            409, "M_INVALID_PARAM", "other facts came under this batch_id before: use another"
        )
    return known


async def _store(conn: Connection, verdicts: list[Verdict]) -> None:
    rows = [row for one in verdicts if one.fact for row in one.fact.rows]
    if rows:
        await ingest.append(conn, rows)
    if counts := _refused(verdicts):
        await ledger.count(conn, counts)
    log.debug("ingest.stored", facts=len(verdicts), rows=len(rows))


def _refused(verdicts: list[Verdict]) -> Counter[LedgerKey]:
    return Counter(
        LedgerKey("", one.kind, LedgerOutcome.REFUSED) for one in verdicts if one.fact is None
    )
