"""Local users that no registration owns: only they are left out by the triggers."""

from collections.abc import Iterable, Sequence
from typing import Final

from appservice_bridge.blueprint.seeding import ADD
from appservice_bridge.storage.database import Connection

PAGE: Final = """
-- foreign_users.page
select user_id from foreign_user where user_id > $1 order by user_id limit $2
"""

REMOVE: Final = """
-- foreign_users.remove
delete from foreign_user where user_id = any($1::text[])
"""


async def add(conn: Connection, user_ids: Iterable[str]) -> None:
    """Put users down as foreign; from the commit on new DB transactions leave them out."""
    await conn.execute(ADD, sorted(set(user_ids)))


async def page(conn: Connection, *, after: str, size: int) -> list[str]:
    """The next so many foreign users, ascending."""
    return [row["user_id"] for row in await conn.fetch(PAGE, after, size)]


async def remove(conn: Connection, user_ids: Sequence[str]) -> None:
    """These users are owned now; from the commit on new DB transactions capture them."""
    await conn.execute(REMOVE, user_ids)
