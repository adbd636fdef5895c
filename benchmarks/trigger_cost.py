"""What the capture costs the homeserver: inserts into device_inbox, with triggers and without.

    python -m benchmarks.trigger_cost [--rounds 7] [--seconds 5] [--users 100000]

pgbench's four clients insert one row of about 1 KB per DB transaction into a table made as Synapse
makes it, in a Postgres of its own on loopback that really syncs. Nobody consumes the log meanwhile,
so that only the cost in the homeserver's own DB transaction is measured; somebody listens, as a
worker does, and is woken. The kinds of windows alternate; a ratio compares the windows of one
round, and the median, least and most of all rounds are shown.
"""

import argparse
import asyncio
import json
import platform
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg

from appservice_bridge.dev.postgres import EmbeddedPostgres
from appservice_bridge.dev.postgres_cluster import wheel_binaries
from appservice_bridge.storage.migrations import migrate
from tests.support.facts import Connection, attach
from tests.support.homeserver import postgres_on_disk

CLIENTS: Final = 4
GOALS: Final = {"nothing matches": ">= 0.85", "all match": ">= 0.75"}

INSERT: Final = r"""
\set user random(1, {users})
\set place random(1, 1000000000)
insert into public.device_inbox (user_id, device_id, stream_id, message_json)
values ('@{prefix}_' || :user || ':example.org', 'DEVICE', :place, '{message}');
"""
FOREIGN: Final = """
insert into appservice_bridge.foreign_user
select '@f_' || n || ':example.org' from generate_series(1, $1::int) n
"""
EMPTY: Final = "truncate public.device_inbox, appservice_bridge.capture_log"
SWITCH: Final = "alter table public.device_inbox {verb} trigger appservice_bridge_insert"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How one kind of window is made.

    Attributes:
        prefix: of the recipients' names; those of `f` are on the list of the foreign.
    """

    name: str
    trigger: bool
    prefix: str


WINDOWS: Final = (
    Window(name="no trigger", trigger=False, prefix="b"),
    Window(name="nothing matches", trigger=True, prefix="f"),
    Window(name="all match", trigger=True, prefix="b"),
)


class Bench:
    """pgbench against one server."""

    def __init__(self, server: EmbeddedPostgres, conn: Connection, directory: Path) -> None:
        self._server = server
        self._conn = conn
        self._directory = directory

    async def rate(self, window: Window, *, seconds: int, users: int) -> float:
        """Rows per second in one window."""
        verb = "enable" if window.trigger else "disable"
        await self._conn.execute(EMPTY)
        await self._conn.execute(SWITCH.format(verb=verb))
        script = self._directory / "insert.sql"
        script.write_text(
            INSERT.format(users=users, prefix=window.prefix, message=self._message()),
        )
        return await self._pgbench(script, seconds)

    @staticmethod
    def _message() -> str:
        content = {"algorithm": "m.olm.v1.curve25519-aes-sha2", "ciphertext": "x" * 900}
        message = {"content": content, "type": "m.room.encrypted", "sender": "@a:example.org"}
        return json.dumps(message)

    async def _pgbench(self, script: Path, seconds: int) -> float:
        binaries = self._server.binaries or wheel_binaries()
        process = await asyncio.create_subprocess_exec(
            str(binaries / "pgbench"),
            *("--no-vacuum", f"--client={CLIENTS}", "--jobs=2", f"--time={seconds}"),
            f"--file={script}",
            self._server.dsn(),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        if process.returncode or b"failed transactions: 0 " not in output:
            raise RuntimeError(f"pgbench ended with {process.returncode}")
        (line,) = [one for one in output.decode().splitlines() if one.startswith("tps = ")]
        return float(line.split()[2])


async def measure(
    server: EmbeddedPostgres, *, rounds: int, seconds: int, users: int
) -> dict[str, list[float]]:
    """Rows per second of every window, by its name, in the order of the rounds."""
    rates: dict[str, list[float]] = {window.name: [] for window in WINDOWS}
    conn, listener = [await asyncpg.connect(server.dsn()) for _ in range(2)]
    await migrate(conn)
    await attach(conn)
    await conn.execute(FOREIGN, users)
    await conn.execute("vacuum analyze appservice_bridge.foreign_user")
    await listener.add_listener("appservice_bridge_capture", lambda *_: None)
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(server, conn, Path(directory))
        for _ in range(rounds):
            for window in WINDOWS:
                rate = await bench.rate(window, seconds=seconds, users=users)
                rates[window.name].append(rate)
    for one in (conn, listener):
        await one.close()
    return rates


def table(rates: Mapping[str, Sequence[float]]) -> str:
    """The rates and ratios as a table in Markdown."""
    lines = ["| window | rows/s, median (min to max) | ratio, median (min to max) | goal |"]
    lines.append("|---|---|---|---|")
    for name, own in rates.items():
        ratios = [rate / bare for rate, bare in zip(own, rates["no trigger"], strict=True)]
        goal = GOALS.get(name, "")
        lines.append(f"| {name} | {_spread(own, 0)} | {_spread(ratios, 2)} | {goal} |")
    return "\n".join(lines)


def _spread(values: Sequence[float], digits: int) -> str:
    shown = (statistics.median(values), min(values), max(values))
    middle, least, most = [f"{value:,.{digits}f}" for value in shown]
    return f"{middle} ({least} to {most})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--users", type=int, default=100_000)
    asked = parser.parse_args()
    with postgres_on_disk() as server:
        rates = asyncio.run(
            measure(server, rounds=asked.rounds, seconds=asked.seconds, users=asked.users)
        )
    print(f"{platform.platform()}, {CLIENTS} clients, {asked.users:,} users on the list\n")
    print(table(rates))


if __name__ == "__main__":
    main()
