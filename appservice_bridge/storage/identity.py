"""Which database this is: after a restore or a failover, transaction ids get a new epoch."""

import secrets
from typing import Final

from appservice_bridge.storage.database import Connection, DatabaseUnavailableError

NOW: Final = """
-- identity.now: the timeline as it is written now, for the control file's is that of a checkpoint
select (select system_identifier::text from pg_control_system()) as system_identifier,
       case when not pg_is_in_recovery()
            then ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer
       end as timeline
"""

STORED: Final = """
-- identity.stored
select system_identifier, timeline, epoch from database_identity
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
    Every connection asks this first, since neither changes under one that is open.

    Raises:
        DatabaseUnavailableError: this is a standby.
    """
    async with conn.transaction():
        return await _current_epoch(conn, restored=restored)


async def _current_epoch(conn: Connection, *, restored: bool) -> str:
    now = await conn.fetchrow(NOW)
    if now is None or now["timeline"] is None:
        raise DatabaseUnavailableError("read only")
    stored = await conn.fetchrow(STORED)
    if stored is not None and not restored:
        known = (stored["system_identifier"], stored["timeline"])
        if known == (now["system_identifier"], now["timeline"]):
            return str(stored["epoch"])
    epoch = secrets.token_hex(4)
    await conn.execute(STORE, now["system_identifier"], now["timeline"], epoch)
    await conn.execute(RENEW_LANES, epoch)
    return epoch
