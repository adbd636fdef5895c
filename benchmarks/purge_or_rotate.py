"""How delivered rows should leave the outbox: a bounded delete, or tables that take turns.

    python -m benchmarks.purge_or_rotate [--rounds 3] [--rows 1000000]

Rows of 1 KB are drained as a lane drains them, a thousand at a time, and what was read leaves: by
`delete … position > $lo and position <= $hi`, five thousand at a time, or with its table, of which
there are ten, by TRUNCATE once it is read to its end. Then rows come and go one thousand at a time
while all that went is still there dead. All the while a DB transaction elsewhere holds its
snapshot, so that vacuum can remove nothing. Both take turns in one run, on a Postgres of its own
that really syncs; the median, least and most of all rounds are shown.
"""

import argparse
import asyncio
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import asyncpg

from tests.support.facts import Connection
from tests.support.homeserver import postgres_on_disk

PAYLOAD_BYTES: Final = 1000
BATCH: Final = 1000
PURGED: Final = 5000
TABLES: Final = 10
STEADY: Final = 50  # batches

COLUMNS: Final = """
create table {name} (
    appservice_id text collate "C", position bigint, kind text not null,
    user_id text, device_id text, stream_id bigint,
    captured_at timestamptz not null, payload bytea not null,
    primary key (appservice_id, position)
)"""
FILL: Final = """
insert into {name}
select 'bot', n, 'to_device', '@b_1:example.org', 'DEVICE', n, now(),
       decode(repeat(md5(n::text), $3 / 16), 'hex') from generate_series($1::bigint, $2::bigint) n
"""
READ: Final = """
select position, kind, payload from {name}
 where appservice_id = 'bot' and position > $1 order by position limit $2
"""
DELETE: Final = """
delete from {name} where appservice_id = 'bot' and position > $1 and position <= $2
"""


class Way(Protocol):
    """One way to let rows go."""

    name: str

    async def make(self, conn: Connection, rows: int) -> None: ...

    async def fill(self, conn: Connection, first: int, last: int) -> None: ...

    async def read(self, conn: Connection, after: int) -> int: ...

    async def purge(self, conn: Connection, upto: int) -> None: ...


class BoundedDelete:
    """As delivery/purge.py does it."""

    name = "bounded delete"

    async def make(self, conn: Connection, rows: int) -> None:
        await conn.execute("drop schema if exists bench cascade; create schema bench")
        await conn.execute(COLUMNS.format(name="bench.outbox"))
        self._purged = 0

    async def fill(self, conn: Connection, first: int, last: int) -> None:
        await conn.execute(FILL.format(name="bench.outbox"), first, last, PAYLOAD_BYTES)

    async def read(self, conn: Connection, after: int) -> int:
        return len(await conn.fetch(READ.format(name="bench.outbox"), after, BATCH))

    async def purge(self, conn: Connection, upto: int) -> None:
        while upto - self._purged >= PURGED:
            low, self._purged = self._purged, self._purged + PURGED
            await conn.execute(DELETE.format(name="bench.outbox"), low, self._purged)


class Rotation:
    """Children of one table, by ranges of positions; one that was read to its end is emptied."""

    name = "rotated tables"

    async def make(self, conn: Connection, rows: int) -> None:
        await conn.execute("drop schema if exists bench cascade; create schema bench")
        await conn.execute(
            COLUMNS.format(name="bench.outbox").rstrip() + " partition by range (position)"
        )
        self._step = rows // TABLES
        for n in range(TABLES + STEADY * BATCH // self._step + 1):
            low, high = n * self._step + 1, (n + 1) * self._step + 1
            await conn.execute(
                f"create table bench.outbox_{n} partition of bench.outbox"
                f" for values from ({low}) to ({high})"
            )
        self._emptied = 0

    async def fill(self, conn: Connection, first: int, last: int) -> None:
        await conn.execute(FILL.format(name="bench.outbox"), first, last, PAYLOAD_BYTES)

    async def read(self, conn: Connection, after: int) -> int:
        return len(await conn.fetch(READ.format(name="bench.outbox"), after, BATCH))

    async def purge(self, conn: Connection, upto: int) -> None:
        while upto >= (self._emptied + 1) * self._step:
            await conn.execute(f"truncate bench.outbox_{self._emptied}")
            self._emptied += 1


async def drained(conn: Connection, way: Way, rows: int) -> float:
    """Rows per second of reading all there is and letting it go."""
    began = time.perf_counter()
    for after in range(0, rows, BATCH):
        if await way.read(conn, after) != BATCH:
            raise RuntimeError(f"{way.name}: rows are missing above {after}")
        await way.purge(conn, after + BATCH)
    return rows / (time.perf_counter() - began)


async def steady(conn: Connection, way: Way, rows: int) -> float:
    """Milliseconds for a thousand rows that come, are read and go, at the median."""
    took = []
    for after in range(rows, rows + STEADY * BATCH, BATCH):
        began = time.perf_counter()
        await way.fill(conn, after + 1, after + BATCH)
        await way.read(conn, after)
        await way.purge(conn, after + BATCH)
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1000


async def measure(dsn: str, *, rounds: int, rows: int) -> dict[str, dict[str, list[float]]]:
    """By way and figure, the values of all rounds."""
    ways: tuple[Way, ...] = (BoundedDelete(), Rotation())
    found: dict[str, dict[str, list[float]]] = {way.name: {} for way in ways}
    conn, holder = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    for _ in range(rounds):
        for way in ways:
            await way.make(conn, rows)
            await way.fill(conn, 1, rows)
            await conn.execute("vacuum analyze bench.outbox")
            async with holder.transaction(isolation="repeatable_read"):
                await holder.fetchval("select count(*) from pg_class")
                figures = {"drained, rows/s": await drained(conn, way, rows)}
                figures["1,000 rows come and go, ms"] = await steady(conn, way, rows)
            began = time.perf_counter()
            await conn.execute("vacuum bench.outbox")
            figures["vacuum afterwards, ms"] = (time.perf_counter() - began) * 1000
            for name, value in figures.items():
                found[way.name].setdefault(name, []).append(value)
                print(f"{way.name}: {name}: {value:,.1f}", file=sys.stderr, flush=True)
    return found


def table(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """The figures as a table in Markdown, with the ratio of each round's pair."""
    deleted, rotated = found[BoundedDelete.name], found[Rotation.name]
    lines = ["| figure, median (min to max) | delete | rotation | rotation / delete |"]
    lines.append("|---|---|---|---|")
    for name in deleted:
        ratios = [r / d for d, r in zip(deleted[name], rotated[name], strict=True)]
        shown = [_spread(deleted[name], 1), _spread(rotated[name], 1), _spread(ratios, 2)]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float], digits: int) -> str:
    shown = (statistics.median(values), min(values), max(values))
    middle, least, most = [f"{value:,.{digits}f}" for value in shown]
    return f"{middle} ({least} to {most})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000_000)
    asked = parser.parse_args()
    with postgres_on_disk() as server:
        found = asyncio.run(measure(server.dsn(), rounds=asked.rounds, rows=asked.rows))
    print(f"{platform.platform()}, {asked.rounds} rounds, {asked.rows:,} rows\n")
    print(table(found))


if __name__ == "__main__":
    main()
