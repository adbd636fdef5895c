"""An appservice that refuses the whole body for one thing in it, and what became of that."""

import json
import random
from collections.abc import Iterable
from typing import Any, Final

from tests.support.appservice import Answer, Request, ok
from tests.support.facts import Connection, message, wait_until

BOT: Final = "@b_1:example.org"
POISON: Final = b'"poison"'
ANSWER: Final = b'{"errcode":"M_BAD_JSON","error":"no \\u0000 like this"}'


def refuses(status: int, what: bytes = POISON) -> Answer:
    """The answer of an appservice that does not take a body with this in it."""

    def answer(request: Request) -> tuple[int, dict[str, str], bytes]:
        return (status, {}, ANSWER) if what in request.body else ok(request)

    return answer


def always(status: int, **headers: str) -> Answer:
    """The same answer to everything, pings included."""
    return lambda _: (status, headers, ANSWER)


async def capture_all(pg: Connection, count: int, poison: Iterable[int] = ()) -> None:
    """So many messages in one commit, some of them poisoned."""
    bad = set(poison)
    bodies = [message(n=n, **({"poison": True} if n in bad else {})) for n in range(1, count + 1)]
    await pg.execute(
        "insert into appservice_bridge.capture_log (kind, user_id, device_id, stream_id, body)"
        " select 'to_device', $1, 'DEV', n, b"
        "   from unnest($2::bytea[]) with ordinality as m(b, n) order by n",
        BOT,
        [body.encode() for body in bodies],
    )
    await pg.execute("notify appservice_bridge_capture")


def numbers(items: list[dict[str, Any]]) -> list[int]:
    return [item["content"]["n"] for item in items]


def places(count: int, among: int, seed: int) -> list[int]:
    """Random places of poison, in order."""
    return sorted(random.Random(seed).sample(range(1, among + 1), count))


async def sent_all(pg: Connection, within: float = 60) -> None:
    """Nothing is in flight, and all that was routed is delivered or buried."""
    await wait_until(
        pg,
        "select position > 0 and position = acked_to and not exists"
        " (select from appservice_bridge.sealed) and not exists"
        " (select from appservice_bridge.capture_log)"
        " from appservice_bridge.lane natural join appservice_bridge.outbox_head",
        within=within,
    )


async def buried(pg: Connection) -> list[dict[str, Any]]:
    """The dead letters, in order."""
    rows = await pg.fetch("select * from appservice_bridge.dead_letter order by buried_at")
    return [dict(row) for row in rows]


async def ledger(pg: Connection, outcome: str) -> dict[str, int]:
    rows = await pg.fetch(
        "select kind, items from appservice_bridge.ledger where outcome = $1", outcome
    )
    return {row["kind"]: row["items"] for row in rows}


async def lane(pg: Connection, column: str) -> Any:
    return await pg.fetchval(f"select {column} from appservice_bridge.lane")


def sent(requests: list[Request]) -> list[Request]:
    """Transactions that held something: neither pings nor probes."""
    return [
        one for one in requests if one.method == "PUT" and json.loads(one.body) != {"events": []}
    ]


def probes(requests: list[Request]) -> list[Request]:
    return [
        one for one in requests if one.method == "PUT" and json.loads(one.body) == {"events": []}
    ]
