"""What following costs with 100,000 tracked users in 1,000 rooms: the change, not the server."""

import statistics
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Final

import asyncpg
import psycopg2
import pytest

from appservice_bridge.dev.postgres import EmbeddedPostgres
from appservice_bridge.routing.following import follow_once
from appservice_bridge.routing.intake import Intake
from appservice_bridge.storage import device_updates, membership_stream, seeding, tracking
from appservice_bridge.storage.database import Database, connect
from tests.support.database import TEMPLATE
from tests.support.facts import Connection, make_synapse_tables
from tests.support.intake import nobody, registered
from tests.support.memberships import Memberships, begin
from tests.support.plans import MODES, is_scan, looked_at, planned

OWNERS: Final = registered(("bot", "@b_.*"), ("irc", "@i_.*"))
TRACKED: Final = 100_000
ROOMS: Final = 1_000
LARGE: Final = 10_000
REPEATS: Final = 6
FOLLOWED_SECONDS: Final = 0.5
ROUTED_SECONDS: Final = 0.005
# Or, where the machine is busy, of what plain SQL takes here and now, with nothing of ours in it.
MOST_TIMES_FOLLOWING: Final = 8.0  # is 2 to 4, also where others are at work
MOST_TIMES_ROUTING: Final = 8.0  # is 2, and 5 where others are at work as well
STATEMENTS: Final = 6  # that a pass of intake sends for one change, between its begin and commit
CAPTURED: Final = """
insert into appservice_bridge.capture_log (kind, stream_id, user_id, device_id)
values ($1, $2, $3, 'DEV')
"""
MAKE_PLAIN: Final = """
create schema plain;
create table plain.tracked (like appservice_bridge.tracked including all);
create table plain.told (like appservice_bridge.device_list_update including all);
"""
TELL_PLAIN: Final = """
insert into plain.told values ('bot', $1, 'changed')
on conflict (appservice_id, user_id) do update set captured_at = clock_timestamp()
"""
IN_LARGE: Final = """
select state_key from public.current_state_events
 where room_id = '!large' and type = 'm.room.member' and membership = 'join'
"""
# Each user is in two rooms with the bot, and the first ones in a large room without it.
FILL: Final = f"""
insert into public.current_state_events (event_id, room_id, type, state_key, membership)
select '$' || n || '.' || k, '!' || (n + k * 17) % {ROOMS}, 'm.room.member',
       '@u' || n || ':example.org', 'join'
  from generate_series(1, {TRACKED}) n, generate_series(0, 1) k;
insert into public.current_state_events (event_id, room_id, type, state_key, membership)
select '$b' || n, '!' || n, 'm.room.member', '@b_1:example.org', 'join'
  from generate_series(0, {ROOMS} - 1) n;
insert into public.current_state_events (event_id, room_id, type, state_key, membership)
select '$l' || n, '!large', 'm.room.member', '@v' || n || ':far.org', 'join'
  from generate_series(1, {LARGE}) n;
insert into public.current_state_events (event_id, room_id, type, state_key, membership)
select '$o' || n, '!other' || n, 'm.room.name', '', null from generate_series(1, 50000) n;
insert into public.room_memberships (event_id, user_id, sender, room_id, membership)
select event_id, state_key, state_key, room_id, membership from public.current_state_events
 where type = 'm.room.member';
insert into public.current_state_delta_stream (stream_id, room_id, type, state_key, event_id)
select row_number() over (), room_id, type, state_key, event_id from public.current_state_events;
insert into public.users (name) values ('@b_1:example.org');
insert into public.stream_positions
select 'events', 'master', max(stream_id) from public.current_state_delta_stream;
"""


@pytest.fixture(scope="module")
def filled(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """A database with a homeserver of some size."""
    server = psycopg2.connect(postgres_server.dsn())
    server.autocommit = True
    server.cursor().execute(f"create database members template {TEMPLATE}")
    yield postgres_server.dsn("members")
    server.cursor().execute("drop database members with (force)")
    server.close()


@pytest.fixture
async def large(filled: str) -> AsyncIterator[tuple[Memberships, Database]]:
    """Everyone is tracked already."""
    pg = await asyncpg.connect(filled)
    if not await pg.fetchval("select to_regclass('public.users')"):
        await make_synapse_tables(pg)
        await pg.execute(FILL)
        await pg.execute(MAKE_PLAIN)
        await pg.execute("analyze")
    last = await pg.fetchval("select max(stream_id) from public.current_state_delta_stream")
    async with Database.open(filled) as db:
        began = time.perf_counter()
        seeded = await begin(db, OWNERS)
        if seeded.changed:
            print(f"first contact with {seeded.changed} users: {time.perf_counter() - began:.1f} s")
        yield Memberships(pg, filled, last_id=last), db
    await pg.close()


async def joined_and_left(
    rooms: Memberships, db: Database
) -> tuple[dict[str, list[float]], list[float]]:
    """The bot joins the large room and leaves it, again and again; times are in seconds.

    Returns what following took of each, and what plain SQL took for as many rows right after.
    """
    took: dict[str, list[float]] = {"join": [], "leave": []}
    plainly = []
    for _ in range(REPEATS):
        for membership, times in took.items():
            await rooms.change("!large", b_1=membership)
            await rooms.pg.execute("truncate appservice_bridge.device_list_update")  # all was told
            began = time.perf_counter()
            followed = await follow_once(db, OWNERS)
            times.append(time.perf_counter() - began)
            assert followed.told == {"bot"}
            plainly.append(await written_plainly(rooms.pg))
    return took, plainly


async def written_plainly(pg: Connection) -> float:
    """Read who is in the large room, and write each into two tables: in seconds."""
    await pg.execute("truncate plain.tracked, plain.told")
    began = time.perf_counter()
    async with pg.transaction():
        users = [row["state_key"] for row in await pg.fetch(IN_LARGE)]
        await pg.execute("insert into plain.tracked select 'bot', unnest($1::text[])", users)
        await pg.execute("insert into plain.told select 'bot', unnest($1::text[]), 'left'", users)
    assert len(users) >= LARGE
    return time.perf_counter() - began


async def told_plainly(conn: Connection, number: int, *, rows: int) -> float:
    """Write a few rows, one after the other: in seconds."""
    began = time.perf_counter()
    for row in range(rows):
        await conn.execute(TELL_PLAIN, f"@{number}.{row}:example.org")
    return time.perf_counter() - began


def assert_quick(
    what: str, took: list[float], plainly: list[float], *, wanted: float, times: float
) -> None:
    """Within what is wanted, or within a few times plain SQL.

    Of each the quickest quarter counts: what else the machine does only ever adds to some of them.
    """
    quick, plain = (statistics.quantiles(one, n=4)[0] for one in (took, plainly))
    median, slow = statistics.median(took), statistics.quantiles(took, n=10)[-1]
    print(
        f"{what}: median {median * 1000:.2f} ms, slowest tenth from {slow * 1000:.2f} ms,"
        f" quickest quarter within {quick * 1000:.2f} ms: {quick / plain:.1f} times plain SQL"
    )
    assert quick < wanted or quick < times * plain


async def test_a_room_of_ten_thousand_is_joined_and_left_within_half_a_second(
    large: tuple[Memberships, Database],
) -> None:
    rooms, db = large
    took, plainly = await joined_and_left(rooms, db)
    for membership, one in took.items():
        what = f"{membership} of a room of {LARGE}"
        assert_quick(what, one, plainly, wanted=FOLLOWED_SECONDS, times=MOST_TIMES_FOLLOWING)


async def test_who_tracks_a_user_is_looked_up_in_milliseconds(
    large: tuple[Memberships, Database],
) -> None:
    _, db = large
    took, plainly = [], []
    async with db.transaction() as conn:
        assert await conn.fetchval("select count(*) from tracked") >= TRACKED
        for number in range(100):
            name, tracked = ("u", True) if number % 2 else ("nobody", False)
            began = time.perf_counter()
            told = await device_updates.change_tracked(conn, [f"@{name}{number + 1}:example.org"])
            took.append(time.perf_counter() - began)
            assert bool(told) == tracked
            plainly.append(await told_plainly(conn, number, rows=1))
    what = "one device change looked up and told"
    assert_quick(what, took, plainly, wanted=ROUTED_SECONDS, times=MOST_TIMES_ROUTING)


async def test_one_device_change_goes_through_the_whole_of_intake_in_milliseconds(
    large: tuple[Memberships, Database],
) -> None:
    """From the row in the log to the commit: the gate, routing, telling repeats, consuming."""
    rooms, db = large
    intake = Intake(db, OWNERS, nobody)
    await rooms.pg.execute("truncate appservice_bridge.device_list_update")  # all was told
    took, plainly = [], []
    for number in range(60):
        await rooms.pg.execute(CAPTURED, "device_list", number + 1, f"@u{number + 1}:example.org")
        began = time.perf_counter()
        passed = await intake.consume_once()
        took.append(time.perf_counter() - began)
        assert passed.appended.keys() == {"bot"}
        began = time.perf_counter()
        async with rooms.pg.transaction():
            await told_plainly(rooms.pg, number, rows=STATEMENTS)
        plainly.append(time.perf_counter() - began)
    waiting = "select count(*) from appservice_bridge.device_list_update where change = 'changed'"
    assert await rooms.pg.fetchval(waiting) == 60
    what = "one device change through intake"
    assert_quick(what, took, plainly, wanted=ROUTED_SECONDS, times=MOST_TIMES_ROUTING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hot:
    """A statement, its parameters as SQL, and the most rows it may look at of each table."""

    statement: str
    parameters: str
    most: int


SOME: Final = ", ".join(f"'@u{n}:example.org'" for n in range(1, 101))
BOTS: Final = "array_fill('bot'::text, array[100])"
ROOM_IDS: Final = ", ".join(f"'!{n}'" for n in range(100))
HOT: Final = {
    "membership_stream.read": Hot(
        statement=membership_stream.READ,
        parameters=f"{TRACKED}, array[{TRACKED + 1}]::bigint[], 100",
        most=110,
    ),
    "membership_stream.joined": Hot(
        statement=membership_stream.JOINED,
        parameters=f"array[{ROOM_IDS}], array[{SOME}]",
        most=1,
    ),
    "tracking.occupied": Hot(
        statement=tracking.OCCUPIED, parameters=f"'{{bot,irc}}', array[{ROOM_IDS}]", most=1
    ),
    "tracking.tracked_among": Hot(
        statement=tracking.TRACKED_AMONG, parameters=f"array[{SOME}]", most=100
    ),
    "tracking.members": Hot(
        statement=tracking.MEMBERS, parameters="'{bot}', '{!7}', true", most=250
    ),
    "tracking.untrack": Hot(
        statement=tracking.UNTRACK, parameters=f"{BOTS}, array[{SOME}]", most=3
    ),
    "tracking.remove_residents": Hot(
        statement=tracking.REMOVE_RESIDENTS,
        parameters=f"{BOTS}, array[{ROOM_IDS}], array_fill('@b_1:example.org'::text, array[100])",
        most=ROOMS + 1,  # a table this small may be hashed
    ),
    "seeding.add_residents": Hot(
        statement=seeding.ADD_RESIDENTS, parameters=f"{BOTS}, array[{SOME}]", most=3
    ),
    "seeding.tracked_page": Hot(
        statement=seeding.TRACKED_PAGE, parameters="'bot', '@u5', 100", most=100
    ),
    "seeding.rooms_page": Hot(statement=seeding.ROOMS_PAGE, parameters="'bot', '!5', 10", most=30),
    "tracking.residents_page": Hot(
        statement=tracking.RESIDENTS_PAGE, parameters="'bot', '!5', '@a', 100", most=100
    ),
    "tracking.tracked_page": Hot(
        statement=tracking.TRACKED_PAGE, parameters="'bot', '@u5', 100", most=100
    ),
    "device_updates.change_tracked": Hot(
        statement=device_updates.CHANGE_TRACKED, parameters="'{@u7:example.org}'", most=1
    ),
}


@pytest.mark.parametrize("mode", MODES)
async def test_every_statement_of_following_probes_indexes_and_reads_no_table_through(
    large: tuple[Memberships, Database], filled: str, mode: str
) -> None:
    conn = await connect(filled)
    wasteful = []
    for name, hot in HOT.items():
        for scan in filter(is_scan, await planned(conn, hot.statement, hot.parameters, mode)):
            looked = looked_at(scan)
            if looked > hot.most or scan["Node Type"] == "Seq Scan":
                wasteful.append(f"{name}: {looked} of {scan['Relation Name']}, {scan['Node Type']}")
    await conn.close()
    assert wasteful == []
