"""Digests of the tokens of appservices, and until when those that were replaced are accepted."""

from collections.abc import Iterable
from typing import Final

from appservice_bridge.domain.registration import Registration
from appservice_bridge.domain.tokens import FormerToken, TokenKind, digests
from appservice_bridge.storage.database import Connection

REPLACE: Final = """
-- tokens.replace: what is in force now takes the place of what was
update appservice_token t
   set accepted_until = now() + make_interval(secs => $4)
  from unnest($1::text[], $2::text[], $3::bytea[]) as c(appservice_id, kind, digest)
 where t.appservice_id = c.appservice_id and t.kind = c.kind and t.digest <> c.digest
   and t.accepted_until is null
"""

PUT_IN_FORCE: Final = """
-- tokens.put_in_force
insert into appservice_token (appservice_id, kind, digest)
select appservice_id, kind, digest
  from unnest($1::text[], $2::text[], $3::bytea[]) as c(appservice_id, kind, digest)
on conflict (appservice_id, kind, digest) do update set accepted_until = null
 where appservice_token.accepted_until is not null
"""

FORGET_EXPIRED: Final = """
-- tokens.forget_expired: also where the time of grace was made shorter
delete from appservice_token
 where accepted_until <= now() or accepted_until is not null and $1::float8 <= 0
"""

FORMER: Final = """
-- tokens.former
select appservice_id, kind, digest,
       extract(epoch from accepted_until - now())::float8 as seconds
  from appservice_token where accepted_until > now()
"""


async def announce(
    conn: Connection, registrations: Iterable[Registration], *, grace_seconds: float
) -> None:
    """These tokens are in force; those they replace are accepted for so long, 0: no longer.

    A former token that is in force again is former no more.
    """
    rows = [(one.id, kind, each) for one in registrations for kind, each in digests(one).items()]
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
    await conn.execute(REPLACE, *columns, grace_seconds)
    await conn.execute(PUT_IN_FORCE, *columns)
    await conn.execute(FORGET_EXPIRED, grace_seconds)


async def former(conn: Connection) -> list[FormerToken]:
    """Those that were replaced and are still accepted."""
    return [
        FormerToken(
            appservice_id=row["appservice_id"],
            kind=TokenKind(row["kind"]),
            digest=row["digest"],
            seconds=row["seconds"],
        )
        for row in await conn.fetch(FORMER)
    ]
