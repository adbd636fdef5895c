"""The registrations that facts are routed by, and since when each is live."""

from collections.abc import Sequence
from typing import Final

from appservice_bridge.blueprint.seeding import WAIT_FOR_GATE
from appservice_bridge.storage.database import Connection

SET_DIGEST: Final = """
-- registrations.set_digest: no intake routes while the registrations change
update intake_gate set registrations_digest = $1
"""

KNOWN: Final = """
-- registrations.known
select appservice_id, namespaces_digest, live_at is not null as live from appservice
"""

ANNOUNCE: Final = """
-- registrations.announce
insert into appservice (appservice_id, namespaces_digest) values ($1, $2)
on conflict (appservice_id) do update
   set namespaces_digest = excluded.namespaces_digest, live_at = null
"""

ATTACH: Final = """
-- registrations.attach: the first time stays, also for who was away meanwhile
insert into attached (appservice_id, stream_id)
select appservice_id, $2 from unnest($1::text[]) as a(appservice_id)
on conflict (appservice_id) do update set stream_id = excluded.stream_id
 where attached.stream_id is null
"""

ATTACHED: Final = """
-- registrations.attached
select appservice_id, stream_id from attached where stream_id is not null
"""

WITHDRAW: Final = """
-- registrations.withdraw: if they come back, their users have to be looked for again
delete from appservice where appservice_id <> all ($1::text[]) returning appservice_id
"""

LOOK_AGAIN: Final = """
-- registrations.look_again
update appservice set live_at = null
 where (select registrations_digest from intake_gate) is distinct from $1
"""

BEGIN_ANEW: Final = """
-- registrations.begin_anew
update appservice set live_at = null where live_at is not null
"""

ADD_HEAD: Final = """
-- registrations.add_head
insert into outbox_head (appservice_id) values ($1) on conflict do nothing
"""

ADD_LANE: Final = """
-- registrations.add_lane: of one that was removed the numbers go on
insert into lane (appservice_id, epoch, next_number)
values ($1, $2, coalesce((select next_number from attached where appservice_id = $1), 1))
on conflict do nothing
"""

OPEN_DB_TRANSACTIONS: Final = """
-- registrations.open_db_transactions: everyone may read this view, whatever the rights
select virtualtransaction from pg_locks where locktype = 'virtualxid' and pid <> pg_backend_pid()
"""

GO_LIVE: Final = """
-- registrations.go_live
update appservice set live_at = clock_timestamp()
 where appservice_id = any($1::text[]) and live_at is null
returning appservice_id
"""


async def wait_for_gate(conn: Connection) -> None:
    """No intake routes, and no registrations change, until the DB transaction ends."""
    await conn.execute(WAIT_FOR_GATE)


async def set_digest(conn: Connection, digest: bytes) -> None:
    """From the commit on only intakes with these registrations route; waits for one at work."""
    await conn.execute(SET_DIGEST, digest)


async def announced(conn: Connection) -> dict[str, tuple[bytes, bool]]:
    """Appservices by id: the digest of their namespaces, and whether they are live."""
    rows = await conn.fetch(KNOWN)
    return {row["appservice_id"]: (row["namespaces_digest"], row["live"]) for row in rows}


async def announce(
    conn: Connection, appservice_id: str, namespaces_digest: bytes, *, epoch: str
) -> None:
    """Give an appservice its outbox and lane; it is not live until its users were looked for."""
    await conn.execute(ANNOUNCE, appservice_id, namespaces_digest)
    await conn.execute(ADD_HEAD, appservice_id)
    await conn.execute(ADD_LANE, appservice_id, epoch)


async def attach(conn: Connection, appservice_ids: Sequence[str], *, present: int | None) -> None:
    """Note where the homeserver's to-device stream is, for those announced for the first time."""
    await conn.execute(ATTACH, appservice_ids, present)


async def attached(conn: Connection) -> dict[str, int]:
    """Where that stream was when each appservice came; without those of whom it is not known."""
    return {row["appservice_id"]: row["stream_id"] for row in await conn.fetch(ATTACHED)}


async def look_again(conn: Connection, registrations_digest: bytes) -> None:
    """Other registrations than the workers' put users down as foreign: look for them at a start."""
    await conn.execute(LOOK_AGAIN, registrations_digest)


async def begin_anew(conn: Connection) -> None:
    """None is live: the next start does for all what a first one does."""
    await conn.execute(BEGIN_ANEW)


async def withdraw_others(conn: Connection, appservice_ids: Sequence[str]) -> list[str]:
    """All but these are registered no longer; what waits in their outboxes stays.

    Returns those that were registered until now.
    """
    return [row["appservice_id"] for row in await conn.fetch(WITHDRAW, appservice_ids)]


async def open_db_transactions(conn: Connection) -> frozenset[str]:
    """The DB transactions that are open now, and may hold an older snapshot."""
    rows = await conn.fetch(OPEN_DB_TRANSACTIONS)
    return frozenset(row["virtualtransaction"] for row in rows)


async def go_live(conn: Connection, appservice_ids: Sequence[str]) -> list[str]:
    """Everything of these appservices is captured from now on; those withdrawn are left out."""
    return [row["appservice_id"] for row in await conn.fetch(GO_LIVE, appservice_ids)]
