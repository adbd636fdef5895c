"""What is remembered to tell repeats, and for how long."""

from typing import Final

from appservice_bridge.storage.database import Connection

# Longer than any look-back: Synapse gives up on nothing, but an outage of a month is no outage.
KEEP_DAYS: Final = 30
BATCH: Final = 5000

FORGET_RELAYED: Final = """
-- memory.forget_relayed
delete from relayed r using (
    select appservice_id, digest from relayed
     where received_at < now() - make_interval(days => $1) limit $2) old
 where r.appservice_id = old.appservice_id and r.digest = old.digest
"""

FORGET_EVENTS: Final = """
-- memory.forget_events
delete from seen_event s using (
    select appservice_id, event_digest from seen_event
     where seen_at < now() - make_interval(days => $1) limit $2) old
 where s.appservice_id = old.appservice_id and s.event_digest = old.event_digest
"""


async def forget(conn: Connection, *, days: int = KEEP_DAYS, batch: int = BATCH) -> int:
    """Forget one batch of what is older than so many days; returns how much it was."""
    statements = (FORGET_RELAYED, FORGET_EVENTS)
    done = [await conn.execute(statement, days, batch) for statement in statements]
    return sum(int(result.split()[1]) for result in done)
