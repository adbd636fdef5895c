"""Database sessions of workers that stopped in the midst of a statement, with locks in their hands.

The driver prepares a statement first and runs it after: between the two Postgres waits for its
client as for one who is quick, and no timeout of a session runs. A worker that is frozen there, or
cut off from the database, would hold the gate or a lane until its machine is found dead.
"""

from typing import Final

from appservice_bridge.storage.database import Connection

END: Final = """
-- stuck.end: half a statement is a matter of milliseconds; nothing here sends rows by COPY
select count(*) filter (where pg_terminate_backend(pid)) from pg_stat_activity
 where datname = current_database() and usename = session_user
   and application_name = current_setting('application_name')
   and state = 'active' and wait_event = 'ClientRead'
   and query_start < clock_timestamp() - interval '10 seconds'
"""


async def end_stuck(conn: Connection) -> int:
    """End sessions whose worker began a statement ten seconds ago and did not go on; how many.

    Such a worker's DB transaction is undone, and it does it again when it can.
    """
    ended: int = await conn.fetchval(END)
    return ended
