"""What the bridge's role needs where another role made the bridge's schema."""

from typing import Final

LACKING: Final = """
-- roles.lacking: the GRANTs that role $1 still needs: all of our schema, and of Synapse's tables
-- $2 the privileges $3
select format('grant %s on %s %s to %I', needed.privilege, needed.kind, needed.name, $1::text)
  from (select 'schema' as kind, name, 'usage' as privilege
          from unnest(array['appservice_bridge', 'public']) as name
        union all
        select 'table', format('appservice_bridge.%I', c.relname), privilege
          from pg_class c, unnest(array['select', 'insert', 'update', 'delete']) as privilege
         where c.relnamespace = to_regnamespace('appservice_bridge') and c.relkind in ('r', 'p')
        union all
        select 'sequence', format('appservice_bridge.%I', c.relname), privilege
          from pg_class c, unnest(array['usage', 'select']) as privilege
         where c.relnamespace = to_regnamespace('appservice_bridge') and c.relkind = 'S'
        union all
        select 'table', 'public.' || name, privilege
          from unnest($2::text[], $3::text[]) as t(name, privilege)
         where to_regclass('public.' || name) is not null) as needed
 where not case needed.kind
       when 'schema' then has_schema_privilege($1::name, needed.name, needed.privilege)
       when 'table' then has_table_privilege($1::name, needed.name, needed.privilege)
       else has_sequence_privilege($1::name, needed.name, needed.privilege)
       end
"""
