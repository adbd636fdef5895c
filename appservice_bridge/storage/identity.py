"""Which database this is: after a restore or a failover, transaction ids get a new epoch."""

import secrets
from typing import Final

from appservice_bridge.storage.database import Connection

NOW: Final = """
-- identity.now
select system_identifier::text as system_identifier, timeline_id as timeline
  from pg_control_system(), pg_control_checkpoint()
"""

STORED: Final = """
-- identity.stored
select system_identifier, timeline, epoch from database_identity for update
"""

STORE: Final = """
-- identity.store
insert into database_identity (system_identifier, timeline, epoch) values ($1, $2, $3)
on conflict (only_row) do update
   set system_identifier = excluded.system_identifier, timeline = excluded.timeline,
       epoch = excluded.epoch
"""

RENEW_LANES: Final = """
-- identity.renew_lanes: what is sealed keeps its id, what comes gets one never given out
update lane set epoch = $1 where epoch <> $1
"""


async def current_epoch(conn: Connection, *, restored: bool = False) -> str:
    """The epoch that new transaction ids carry, in every lane; eight hex digits.

    It changes when the database's system identifier or timeline did, or when an operator says
    that it was `restored`: numbers given out since the backup would else be given out again.
    """
    now = await conn.fetchrow(NOW)
    stored = await conn.fetchrow(STORED)
    if now is None:
        raise LookupError("Postgres does not say which database it is")
    known = stored is not None and all(
        stored[name] == now[name] for name in ("system_identifier", "timeline")
    )
    if stored is not None and known and not restored:
        return str(stored["epoch"])
    epoch = secrets.token_hex(4)
    await conn.execute(STORE, now["system_identifier"], now["timeline"], epoch)
    await conn.execute(RENEW_LANES, epoch)
    return epoch
