"""What everything must look like that runs inside the homeserver's own DB transactions."""

from typing import Final

from appservice_bridge.domain.capture import TRIGGERS
from tests.support.facts import Connection, attach

FUNCTIONS: Final = """
select p.oid::regprocedure::text as name, p.prosrc as source,
       coalesce(p.proconfig, '{}') as settings, p.prorettype = 'trigger'::regtype as of_trigger
  from pg_proc p where p.pronamespace = 'appservice_bridge'::regnamespace
"""
TRIGGERS_MADE: Final = """
select t.tgname as name, t.tgrelid::regclass::text as on_table,
       t.tgqual is not null or cardinality(t.tgattr) > 0 as asks_for_columns
  from pg_trigger t join pg_proc p on p.oid = t.tgfoid
 where p.pronamespace = 'appservice_bridge'::regnamespace and not t.tgisinternal
   and t.tgrelid::regclass::text not like 'appservice_bridge.%'
"""
HANGING: Final = """
select c.oid::regclass::text from pg_class c
  join pg_depend d on d.refobjid = c.oid and d.refclassid = 'pg_class'::regclass
 where c.relnamespace = 'public'::regnamespace
   and (d.classid = 'pg_rewrite'::regclass
        or exists (select from pg_constraint k where d.classid = 'pg_constraint'::regclass
                      and k.oid = d.objid
                      and k.connamespace = 'appservice_bridge'::regnamespace))
"""


async def test_rule_10_every_function_gives_up_soon_and_knows_where_it_looks(
    pg: Connection,
) -> None:
    await attach(pg)
    functions = await pg.fetch(FUNCTIONS)
    assert sum(one["of_trigger"] for one in functions) >= len({each.function for each in TRIGGERS})
    for one in functions:
        settings = dict(each.split("=", 1) for each in one["settings"])
        assert settings["search_path"] == "pg_catalog, pg_temp", one["name"]
        if one["of_trigger"]:
            assert settings["lock_timeout"] == "100ms", one["name"]
            assert "exception when others" in one["source"], one["name"]
        assert "statement_timeout" not in settings, one["name"]  # no handler catches it


async def test_rule_10_nothing_of_ours_hangs_on_a_column_of_the_homeserver_s(
    pg: Connection,
) -> None:
    await attach(pg)
    triggers = await pg.fetch(TRIGGERS_MADE)
    assert len(triggers) == len(TRIGGERS)
    assert [one["name"] for one in triggers if one["asks_for_columns"]] == []
    assert [one["name"] for one in triggers if "current_state" in one["on_table"]] == []
    assert await pg.fetch(HANGING) == []


async def test_rule_1_the_numbers_of_the_log_are_given_one_by_one(pg: Connection) -> None:
    """A session that kept some for itself would commit lower numbers after higher ones."""
    cache = "select seqcache from pg_sequence where seqrelid = 'appservice_bridge.capture_seq'"
    assert await pg.fetchval(f"{cache}::regclass") == 1
