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
from tests.support.facts import make_synapse_tables
from tests.support.intake import nobody, registered
from tests.support.memberships import Memberships, begin
from tests.support.plans import MODES, is_scan, looked_at, planned

OWNERS: Final = registered(("bot", "@b_.*"), ("irc", "@i_.*"))
TRACKED: Final = 100_000
ROOMS: Final = 1_000
LARGE: Final = 10_000
REPEATS: Final = 3
# Of what a pass with nothing to look up takes; that an index is used, the plans below show.
MOST_PASSES: Final = 2.5
CAPTURED: Final = """
insert into appservice_bridge.capture_log (kind, stream_id, user_id, device_id)
values ($1, $2, $3, 'DEV')
"""
# What one insert of as many rows into one of our tables takes is what this machine can do now.
MOST_INSERTS: Final = 40
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
        await pg.execute("analyze")
    last = await pg.fetchval("select max(stream_id) from public.current_state_delta_stream")
    async with Database.open(filled) as db:
        began = time.perf_counter()
        seeded = await begin(db, OWNERS)
        if seeded.changed:
            print(f"first contact with {seeded.changed} users: {time.perf_counter() - began:.1f} s")
        yield Memberships(pg, filled, last_id=last), db
    await pg.close()


async def median(rooms: Memberships, db: Database, membership: str) -> float:
    """The pass over a change of the bot in the large room, which is undone after it: in seconds."""
    took = []
    for _ in range(REPEATS):
        await rooms.change("!large", b_1=membership)
        await rooms.pg.execute("truncate appservice_bridge.device_list_update")  # all was told
        began = time.perf_counter()
        followed = await follow_once(db, OWNERS)
        took.append(time.perf_counter() - began)
        assert followed.told == {"bot"}
        await rooms.change("!large", b_1="leave" if membership == "join" else "join")
        await follow_once(db, OWNERS)
    return statistics.median(took)


async def one_insert(db: Database) -> float:
    """How long it takes to insert so many rows and no more: in seconds."""
    took = []
    for _ in range(REPEATS):
        async with db.transaction() as conn:
            await conn.execute(
                "create temp table plain (like tracked including all) on commit drop"
            )
            began = time.perf_counter()
            await conn.execute(
                "insert into plain select 'bot', '@v' || n || ':far.org'"
                f" from generate_series(1, {LARGE}) n"
            )
            took.append(time.perf_counter() - began)
    return statistics.median(took)


@pytest.mark.parametrize("membership", ["join", "leave"])
async def test_a_room_of_ten_thousand_is_joined_and_left_within_half_a_second(
    large: tuple[Memberships, Database], membership: str
) -> None:
    rooms, db = large
    if membership == "leave":
        await rooms.change("!large", b_1="join")
        await follow_once(db, OWNERS)
    took, insert = await median(rooms, db, membership), await one_insert(db)
    print(f"{membership} of a room of {LARGE}: {took * 1000:.0f} ms, {took / insert:.1f} inserts")
    assert took < 0.5 or took < MOST_INSERTS * insert  # a busy machine is no fault
    if membership == "leave":
        await rooms.change("!large", b_1="leave")
        await follow_once(db, OWNERS)


async def test_who_tracks_a_user_is_looked_up_in_milliseconds(
    large: tuple[Memberships, Database],
) -> None:
    _, db = large
    took: dict[str, list[float]] = {"tracked": [], "untracked": []}
    async with db.transaction() as conn:
        assert await conn.fetchval("select count(*) from tracked") >= TRACKED
        for number in range(100):
            kind, name = ("tracked", "u") if number % 2 else ("untracked", "nobody")
            began = time.perf_counter()
            told = await device_updates.change_tracked(conn, [f"@{name}{number + 1}:example.org"])
            took[kind].append(time.perf_counter() - began)
            assert bool(told) == (kind == "tracked")
    median, nothing = (statistics.median(one) for one in took.values())
    print(f"one device change looked up and told: {median * 1000:.2f} ms")
    assert median < 0.005 or median < MOST_PASSES * nothing  # a busy machine is no fault


async def test_one_device_change_goes_through_the_whole_of_intake_in_milliseconds(
    large: tuple[Memberships, Database],
) -> None:
    """From the row in the log to the commit: the gate, routing, telling repeats, consuming."""
    rooms, db = large
    intake = Intake(db, OWNERS, nobody)
    await rooms.pg.execute("truncate appservice_bridge.device_list_update")  # all was told
    took: dict[str, list[float]] = {"device_list": [], "device_keys": []}
    for number in range(120):
        kind = "device_list" if number % 2 else "device_keys"  # of whom nobody owns: nothing to do
        await rooms.pg.execute(CAPTURED, kind, number + 1, f"@u{number + 1}:example.org")
        began = time.perf_counter()
        passed = await intake.consume_once()
        took[kind].append(time.perf_counter() - began)
        assert passed.appended.keys() == ({"bot"} if kind == "device_list" else set())
    median, nothing = (statistics.median(one) for one in took.values())
    print(
        f"one device change through intake: median {median * 1000:.2f} ms,"
        f" slowest tenth from {sorted(took['device_list'])[54] * 1000:.2f} ms;"
        f" a change that concerns nobody: {nothing * 1000:.2f} ms"
    )
    waiting = "select count(*) from appservice_bridge.device_list_update where change = 'changed'"
    assert await rooms.pg.fetchval(waiting) == 60
    assert median < 0.005 or median < MOST_PASSES * nothing  # a busy machine is no fault


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
