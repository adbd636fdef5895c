"""The one log that everything comes in through: appended to by many, consumed by intake alone."""

import hashlib
from typing import Final

from appservice_bridge.storage.database import Connection

# The digest is written first: it gives the DB transaction its id before the log's number is
# drawn, which is what a gap in the log is settled by.
APPEND_TRANSACTION: Final = """
-- capture_log.append_transaction
with fresh as (
    insert into relayed (appservice_id, digest) values ($1, $2)
    on conflict do nothing
    returning appservice_id
)
insert into capture_log (kind, appservice_id, body)
select 'transaction', appservice_id, $3 from fresh
"""

NOTIFY: Final = """
-- capture_log.notify
select pg_notify('appservice_bridge_capture', '')
"""


async def append_transaction(
    conn: Connection, appservice_id: str, *, txn_id: str, body: bytes
) -> bool:
    """Append a homeserver's transaction; False if these bytes came under this id before."""
    digest = hashlib.sha256(f"{len(txn_id)}:{txn_id}:".encode(errors="surrogatepass") + body)
    done = await conn.execute(APPEND_TRANSACTION, appservice_id, digest.digest(), body)
    fresh = done == "INSERT 0 1"
    if fresh:
        await notify(conn)
    return fresh


async def notify(conn: Connection) -> None:
    """Wake whoever runs intake when this DB transaction commits; a courtesy, it looks anyway."""
    await conn.execute(NOTIFY)
