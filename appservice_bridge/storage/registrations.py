"""Makes the tables ready for a set of registrations, and finds users they now own."""

from collections.abc import Sequence
from typing import Final

from appservice_bridge.storage.database import Connection

HOLD_GATE: Final = """
-- registrations.hold_gate
select from intake_gate for update
"""

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

WITHDRAW: Final = """
-- registrations.withdraw: if they come back, their users have to be looked for again
delete from appservice where appservice_id <> all ($1::text[])
"""

ADD_HEAD: Final = """
-- registrations.add_head
insert into outbox_head (appservice_id) values ($1) on conflict do nothing
"""

ADD_LANE: Final = """
-- registrations.add_lane
insert into lane (appservice_id, epoch) values ($1, $2) on conflict do nothing
"""

FOREIGN_PAGE: Final = """
-- registrations.foreign_page
select user_id from foreign_user where user_id > $1 order by user_id limit $2
"""

REMOVE_FOREIGN: Final = """
-- registrations.remove_foreign
delete from foreign_user where user_id = any($1::text[])
"""

OPEN_TRANSACTIONS: Final = """
-- registrations.open_transactions: everyone may read this view, whatever the rights
select virtualtransaction from pg_locks where locktype = 'virtualxid' and pid <> pg_backend_pid()
"""

GO_LIVE: Final = """
-- registrations.go_live
update appservice set live_at = clock_timestamp()
 where appservice_id = any($1::text[]) and live_at is null
returning appservice_id
"""


async def hold_gate(conn: Connection) -> None:
    """No intake routes, and no registrations change, until the DB transaction ends."""
    await conn.execute(HOLD_GATE)


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


async def withdraw_others(conn: Connection, appservice_ids: Sequence[str]) -> None:
    """All but these are registered no longer; what waits in their outboxes stays."""
    await conn.execute(WITHDRAW, appservice_ids)


async def foreign_page(conn: Connection, *, after: str, size: int) -> list[str]:
    """The next so many foreign users, ascending."""
    return [row["user_id"] for row in await conn.fetch(FOREIGN_PAGE, after, size)]


async def remove_foreign(conn: Connection, user_ids: Sequence[str]) -> None:
    """These users are owned now; from the commit on new DB transactions capture them."""
    await conn.execute(REMOVE_FOREIGN, user_ids)


async def open_transactions(conn: Connection) -> frozenset[str]:
    """The DB transactions that are open now, and may hold an older snapshot."""
    rows = await conn.fetch(OPEN_TRANSACTIONS)
    return frozenset(row["virtualtransaction"] for row in rows)


async def go_live(conn: Connection, appservice_ids: Sequence[str]) -> list[str]:
    """Everything of these appservices is captured from now on; those withdrawn are left out."""
    return [row["appservice_id"] for row in await conn.fetch(GO_LIVE, appservice_ids)]
