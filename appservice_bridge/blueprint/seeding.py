"""Whom the triggers leave out from the start: users that nobody owns."""

from typing import Final

WAIT_FOR_GATE: Final = """
-- seeding.wait_for_gate
select from intake_gate for update
"""

ANNOUNCED: Final = """
-- seeding.announced: a worker said whom it routes to, and keeps the list of the foreign since
select exists (select from appservice)
"""

USERS_PAGE: Final = """
-- seeding.users_page
select name from public.users where name > $1 order by name limit $2
"""

ADD: Final = """
-- seeding.add
insert into foreign_user (user_id) select * from unnest($1::text[]) on conflict do nothing
"""


def told(foreign: int) -> str:
    """How many are foreign, in words."""
    return ("1 user belongs" if foreign == 1 else f"{foreign} users belong") + " to no appservice"
