"""The hot statements read no more than they need of tables that have grown large."""

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import psycopg2
import pytest

from appservice_bridge.dev.postgres import EmbeddedPostgres
from appservice_bridge.storage import (
    capture_log,
    device_updates,
    figures,
    leases,
    letters,
    outbox,
    overview,
    repeats,
    samples,
    sealed,
    shipments,
    straight,
    turns,
    untold,
)
from appservice_bridge.storage.database import Connection, connect
from tests.support.database import TEMPLATE
from tests.support.plans import MODES, Node, is_scan, looked_at, planned

ROWS: Final = 100_000
FEWER: Final = 20_000  # where a key is a digest or three columns, filling takes long
TOLD: Final = 300  # users and devices in one transaction
MOST_PAIRS: Final = 1000
FILL: Final = f"""
insert into capture_log (kind, user_id, device_id, stream_id, body)
select 'to_device', '@u' || n || ':example.org', 'DEV', n, '{{}}' from generate_series(1, {ROWS}) n;
insert into outbox (appservice_id, position, kind, captured_at, payload)
select 'bot' || n % 4, n / 4, 'event', now(), '{{}}' from generate_series(4, {ROWS} + 3) n;
insert into foreign_user select '@f' || n || ':example.org' from generate_series(1, {ROWS}) n;
insert into relayed
select 'bot' || n % 4, sha256(n::text::bytea), now() - make_interval(mins => n)
  from generate_series(1, {FEWER}) n;
insert into seen_event select * from relayed;
insert into taken (user_id, device_id, stream_id)
select '@u' || n || ':example.org', 'DEV', n from generate_series(1, {FEWER}) n;
insert into sealed
select 'bot' || n / 10, n, n, n, n, 1, 2, 1, '{{}}', '{{}}', ''
  from generate_series(10, {ROWS} / 10) n;
insert into lane (appservice_id, epoch, acked_to)
select 'bot' || n, 'e', {ROWS} / 4 - 5 from generate_series(0, 3) n;
insert into kept (appservice_id, number, txn_id, first_position, last_position, items,
                  payload_bytes)
select 'bot1', n, n, n, n, 1, 2 from generate_series(1, {FEWER}) n;
insert into dead_letter (appservice_id, kind, reason)
select 'bot1', 'event', 'refused' from generate_series(1, {FEWER}) n;
insert into device_list_update (appservice_id, user_id, change, sealed_in)
select 'bot1', '@u' || n || ':example.org', 'changed', case when n <= {TOLD} then 7 end
  from generate_series(1, {FEWER}) n;
insert into device_key_state (appservice_id, user_id, device_id, waiting, recount, sealed_in)
select 'bot1', '@u' || n || ':example.org', 'DEV', n > {TOLD}, true,
       case when n <= {TOLD} then 7 end
  from generate_series(1, {FEWER}) n;
insert into outbox_head select appservice_id, {ROWS} / 4 from lane;
update intake_gate set registrations_digest = 'ours', head = {ROWS} - 5000;
insert into intake_gap (first_seq, last_seq) values (70, 80), (900, 900);
"""
# What the trigger asks of each row, with the rows of one statement of the homeserver.
FOREIGN_PROBE: Final = """
select i.user_id from (select '@f' || n * 1000 || ':example.org' as user_id
                         from generate_series($1::int, $2::int) n) i
 where (select true from foreign_user f where f.user_id = i.user_id) is null
"""
SOME_USERS: Final = "array['@u7:example.org', '@u8:example.org', '@new:example.org']"
SOME_DIGESTS: Final = "array[sha256('7'), sha256('8'), sha256('new')]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hot:
    """A statement with its parameters as SQL, and the most rows it may look at per table."""

    statement: str
    parameters: str
    looks_at: Mapping[str, float]


HOT: Final = {
    "capture_log.read": Hot(
        statement=capture_log.READ,
        parameters="'ours', 1000, 16777216, false, null, '{}', '{}', '{}'",
        looks_at={"capture_log": 1011},
    ),
    "capture_log.read of little": Hot(
        statement=capture_log.READ,
        parameters="'ours', 5, 16777216, false, null, '{}', '{}', '{}'",
        looks_at={"capture_log": 15},
    ),
    "straight.route": Hot(
        statement=straight.ROUTE,
        parameters="'ours', null, '{90001,90002,90003}', '{90001,90002,90003}',"
        " '{bot0,bot1,bot0}', '{1,1,2}', '{a,b,c}', '{bot0,bot1}', '{2,1}', '{9,9}', 1000000,"
        " '{70}', '{99001}', '{99002}'",
        looks_at={"capture_log": 12, "outbox_head": 6, "lane": 2, "outbox": 0},
    ),
    "capture_log.consume": Hot(
        statement=capture_log.CONSUME,
        parameters=f"'{{{','.join(map(str, range(500, 600)))}}}', 599",
        looks_at={"capture_log": 100},
    ),
    "repeats.take": Hot(
        statement=repeats.TAKE,
        parameters=f"{SOME_USERS}, '{{DEV,DEV,DEV}}', '{{7,8,9}}'",
        looks_at={"taken": 0},
    ),
    "repeats.first_seen": Hot(
        statement=repeats.FIRST_SEEN,
        parameters=f"'{{bot3,bot0,bot0}}', {SOME_DIGESTS}",
        looks_at={"seen_event": 0},
    ),
    "outbox.next_items": Hot(
        statement=outbox.NEXT_ITEMS,
        parameters="'bot1', 10000, 100, 900000, 9223372036854775807",
        looks_at={"outbox": 100},
    ),
    "outbox.sealed_items": Hot(
        statement=outbox.SEALED_ITEMS,
        parameters="'bot1', 10000, 10049",
        looks_at={"outbox": 50},
    ),
    "sealed.in_flight": Hot(
        statement=sealed.IN_FLIGHT, parameters="'bot1'", looks_at={"sealed": 10}
    ),
    "sealed.ack": Hot(
        statement=sealed.ACK,
        parameters="'bot1', 0, 17, 200, '{event}', '{1}'",
        looks_at={"sealed": 1},
    ),
    "turns.take": Hot(
        statement=turns.TAKE,
        parameters="'{bot1,bot2}', '{0,0}', '{17,27}', '{200,200}',"
        " '{bot1}', '{1}', '{abe-1}', '{1}', '{5}', '{5}', '{9}', '{event}', array[''::bytea],"
        " '{1,1}', array[''::bytea, ''::bytea], 1, '{bot1,bot2}', '{event,event}', '{1,1}', false",
        looks_at={"sealed": 10},
    ),
    "outbox.purge": Hot(
        statement=outbox.PURGE, parameters="'bot1', 100, 200, true", looks_at={"outbox": 100}
    ),
    "overview.lanes": Hot(
        statement=overview.LANES,
        parameters="null",
        looks_at={"outbox": 5, "dead_letter": 10_000 / 4},
    ),
    "samples.take": Hot(statement=samples.TAKE, parameters="", looks_at={"outbox": 1}),
    "letters.page": Hot(
        statement=letters.PAGE,
        parameters="'bot1', '2100-01-01', gen_random_uuid(), 10",
        looks_at={"dead_letter": 10},
    ),
    "shipments.newest": Hot(
        statement=shipments.NEWEST,
        parameters="'bot1', 9223372036854775807, 10",
        looks_at={"kept": 10, "sealed": 10, "outbox": 10},
    ),
    "figures.oldest_to_device": Hot(
        statement=figures.OLDEST_TO_DEVICE, parameters="1000", looks_at={"outbox": 5}
    ),
    "device_updates.waiting_lists": Hot(
        statement=device_updates.WAITING_LISTS,
        parameters="'bot1', 100",
        looks_at={"device_list_update": 100},
    ),
    "device_updates.ack_lists": Hot(
        statement=device_updates.ACK_LISTS,
        parameters="'bot1', 7",
        looks_at={"device_list_update": TOLD},
    ),
    "device_updates.ack_keys": Hot(
        statement=device_updates.ACK_KEYS,
        parameters="'bot1', 7",
        looks_at={"device_key_state": TOLD},
    ),
    "untold.lists_wait": Hot(
        statement=untold.LISTS_WAIT,
        parameters="'bot1', 7",
        looks_at={"device_list_update": TOLD},
    ),
    "untold.keys_wait": Hot(
        statement=untold.KEYS_WAIT,
        parameters="'bot1', 7",
        looks_at={"device_key_state": TOLD},
    ),
    "leases.lanes_with_work": Hot(
        statement=leases.LANES_WITH_WORK, parameters="gen_random_uuid()", looks_at={}
    ),
    "repeats.forget_relayed": Hot(
        statement=repeats.FORGET_RELAYED, parameters="13, 500", looks_at={"relayed": 500}
    ),
    "repeats.forget_events": Hot(
        statement=repeats.FORGET_EVENTS, parameters="13, 500", looks_at={"seen_event": 500}
    ),
    "the trigger's probe of foreign_user": Hot(
        statement=FOREIGN_PROBE, parameters="1, 50", looks_at={"foreign_user": 1}
    ),
}


@pytest.fixture(scope="module")
def filled(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """A database with large tables that nobody analyzed yet."""
    server = psycopg2.connect(postgres_server.dsn())
    server.autocommit = True
    server.cursor().execute(f"create database filled template {TEMPLATE}")
    tables = psycopg2.connect(postgres_server.dsn("filled"))
    tables.cursor().execute("set search_path = appservice_bridge")
    for table in ("capture_log", "outbox", "foreign_user", "relayed", "seen_event", "sealed"):
        tables.cursor().execute(f"alter table {table} set (autovacuum_enabled = off)")
    tables.cursor().execute(FILL)
    tables.commit()
    tables.close()
    yield postgres_server.dsn("filled")
    server.cursor().execute("drop database filled with (force)")
    server.close()


@pytest.fixture
async def full(filled: str) -> AsyncIterator[Connection]:
    conn = await connect(filled)
    yield conn
    await conn.close()


def too_much(node: Node, hot: Hot) -> str | None:
    """What a node looked at in vain: rows of a large table, or pairs of rows that do not fit."""
    in_vain = node.get("Rows Removed by Join Filter", 0)
    if in_vain > MOST_PAIRS:
        return f"{in_vain} pairs by {node['Node Type']}"
    if not is_scan(node):
        return None
    most = hot.looks_at.get(node["Relation Name"], ROWS)
    looked = looked_at(node)
    if looked > most or (node["Node Type"] == "Seq Scan" and most < ROWS):
        return f"{looked:.0f} rows by {node['Node Type']}"
    return None


async def wasteful(conn: Connection) -> list[str]:
    """Every scan or join that looks at more than it needs."""
    found = []
    for mode in MODES:
        for name, hot in HOT.items():
            ran = await planned(conn, hot.statement, hot.parameters, mode)
            seen = [too_much(node, hot) for node in ran]
            found += [f"{name}, {mode}: {looked}" for looked in seen if looked]
    return found


async def test_hot_statements_read_by_index_also_before_anyone_analyzed_the_tables(
    full: Connection,
) -> None:
    assert await wasteful(full) == []


async def test_hot_statements_read_by_index_and_no_more_than_they_need(full: Connection) -> None:
    await full.execute("analyze")
    assert await wasteful(full) == []
