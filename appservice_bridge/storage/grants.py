"""What the bridge's role may do in the homeserver's database, and what its owner granted it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from appservice_bridge.domain import capture
from appservice_bridge.domain.capture import CAPTURED, POLLED, READ
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.storage.database import Connection

Needed: TypeAlias = tuple[str, str | None, str]
"""Kind, name and privilege; without a name it is the database that is asked."""

READING: Final[tuple[Needed, ...]] = (
    ("database", None, "CREATE"),
    ("schema", "public", "USAGE"),
    *(("table", f"public.{table}", "SELECT") for table in READ),
)
CAPTURING: Final[tuple[Needed, ...]] = tuple(
    ("table", f"public.{table}", "TRIGGER") for table in CAPTURED
)
POLLING: Final[tuple[Needed, ...]] = tuple(
    ("table", f"public.{table}", "SELECT") for table in POLLED
)
CLEANING: Final[tuple[Needed, ...]] = tuple(
    ("table", f"public.{table}", privilege) for table, privilege in capture.CLEANING
)
DELETING: Final[tuple[Needed, ...]] = tuple(one for one in CLEANING if one[2] == "DELETE")

RIGHTS: Final = """
-- grants.rights: which of $1, $2, $3 (kind, name, privilege) this role has, whoever gave it
select needed.kind, coalesce(needed.name, quote_ident(current_database())) as name,
       needed.privilege,
       case needed.kind
            when 'database' then has_database_privilege(current_database(), needed.privilege)
            when 'schema' then has_schema_privilege(needed.name, needed.privilege)
            else coalesce(has_table_privilege(to_regclass(needed.name), needed.privilege), false)
       end as held
  from unnest($1::text[], $2::text[], $3::text[]) as needed(kind, name, privilege)
 where needed.name is distinct from 'public.sliding_sync_connections'
    or to_regclass(needed.name) is not null
"""

GRANTED: Final = """
-- grants.granted: what was granted to this very role, and what it owns is not
select g.kind, g.name, g.privilege, true as held
  from (select 'database' as kind, quote_ident(d.datname) as name, d.datdba as owner,
               a.grantee, a.privilege_type as privilege
          from pg_database d, aclexplode(d.datacl) a
         where d.datname = current_database() and a.privilege_type = 'CREATE'
        union all
        select 'schema', quote_ident(n.nspname), n.nspowner, a.grantee, a.privilege_type
          from pg_namespace n, aclexplode(n.nspacl) a
         where n.nspname = 'public' and a.privilege_type = 'USAGE'
        union all
        select 'table', format('public.%I', c.relname), c.relowner, a.grantee, a.privilege_type
          from pg_class c, aclexplode(c.relacl) a
         where c.relnamespace = to_regnamespace('public') and c.relkind <> 'S'
           and a.privilege_type in ('SELECT', 'TRIGGER', 'DELETE')) g
 where g.grantee = (select oid from pg_roles where rolname = current_user)
   and g.owner <> g.grantee
 order by g.kind, g.name, g.privilege
"""

QUOTED_ROLE: Final = """
-- grants.quoted_role
select quote_ident(current_user)
"""


class GrantsMissingError(BridgeError):
    """The role lacks rights; the owner of the database must give them."""

    def __init__(self, statements: list[str]) -> None:
        lines = "".join(f"\n  {statement}" for statement in statements)
        super().__init__(f"the owner of the homeserver's database must run first:{lines}")
        self.statements = statements


@dataclass(frozen=True, slots=True, kw_only=True)
class Right:
    """One right of the bridge's role.

    Attributes:
        kind: database, schema or table.
        name: as SQL takes it, quoted where it has to be.
        held: whether this role has it.
    """

    kind: str
    name: str
    privilege: str
    held: bool

    @property
    def on(self) -> str:
        """What stands between GRANT and TO, or REVOKE and FROM."""
        return f"{self.privilege} ON {self.kind.upper()} {self.name}"


async def rights(
    conn: Connection, *, triggers: bool = True, cleaning: bool = False, polling: bool = False
) -> list[Right]:
    """What the bridge needs: to read, to put its triggers up, to clean the inbox.

    And what is of use to polling, which may take over from triggers: it goes on without.
    """
    return await _held(
        conn,
        READING
        + (POLLING if polling else ())
        + (CAPTURING if triggers else ())
        + (CLEANING if cleaning else ()),
    )


async def rights_of_polling(conn: Connection) -> list[Right]:
    """What polling can do without."""
    return await _held(conn, POLLING)


async def grants(conn: Connection, of: Iterable[Right]) -> list[str]:
    """The GRANTs that the owner of the homeserver's database must run for these rights."""
    role = await conn.fetchval(QUOTED_ROLE)
    return [f"GRANT {right.on} TO {role};" for right in of]


async def revokes(conn: Connection) -> list[str]:
    """The REVOKEs that only the owner may run: one for each grant that this very role has.

    What it holds as the owner, a superuser or a member of another role was granted by nobody.
    """
    role = await conn.fetchval(QUOTED_ROLE)
    return [f"REVOKE {Right(**row).on} FROM {role};" for row in await conn.fetch(GRANTED)]


async def require_rights(
    conn: Connection, *, triggers: bool = True, deleting: bool = False
) -> None:
    """Refuse a role that could not install the capture, or not delete where it is told to.

    Raises:
        GrantsMissingError: with the statements that give the rights.
    """
    needed = await rights(conn, triggers=triggers)
    if deleting:
        needed += await _held(conn, DELETING)
    if lacking := [right for right in needed if not right.held]:
        raise GrantsMissingError(await grants(conn, lacking))


async def _held(conn: Connection, needed: Iterable[Needed]) -> list[Right]:
    kinds, names, privileges = zip(*needed, strict=True)
    return [Right(**row) for row in await conn.fetch(RIGHTS, kinds, names, privileges)]
