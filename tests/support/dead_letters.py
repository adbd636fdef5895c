"""Dead letters as lanes and intake leave them."""

import json
from typing import Any, Final

from appservice_bridge.domain.author import Author
from tests.support.facts import Connection

BOT = "@b_1:example.org"
BY: Final = Author(name="cli:test", role="cli")


def item(n: int, user: str = BOT) -> bytes:
    """A to-device message as it stands in a body."""
    return json.dumps(
        {
            "to_user_id": user,
            "to_device_id": "DEV",
            "type": "m.test",
            "sender": "@alice:example.org",
            "content": {"n": n},
        }
    ).encode()


async def set_aside(
    pg: Connection,
    n: int,
    *,
    appservice_id: str = "bot",
    kind: str = "to_device",
    reason: str = "refused",
    payload: bytes | None = None,
    redrivable: bool = True,
    user: str | None = BOT,
    device: str | None = "DEV",
) -> str:
    """A message that an appservice refused, or what is said instead; its id."""
    found: Any = await pg.fetchval(
        "insert into appservice_bridge.dead_letter (appservice_id, kind, reason, user_id,"
        " device_id, stream_id, payload, redrivable, txn_id, status, errcode, answer)"
        " values ($1, $2, $3, $4, $5, $6, $7, $8, 'abx-1', 400, 'M_BAD_JSON', 'SECRET')"
        " returning dead_letter_id",
        *(appservice_id, kind, reason, user, device, n),
        item(n) if payload is None and redrivable else payload,
        redrivable,
    )
    return str(found)


async def ledger(pg: Connection, appservice_id: str = "bot") -> dict[str, int]:
    """Items by outcome, whatever their kind."""
    rows = await pg.fetch(
        "select outcome, sum(items)::int as items from appservice_bridge.ledger"
        " where appservice_id = $1 group by outcome",
        appservice_id,
    )
    return {row["outcome"]: row["items"] for row in rows}


async def buried(pg: Connection) -> int:
    count: int = await pg.fetchval("select count(*) from appservice_bridge.dead_letter")
    return count
