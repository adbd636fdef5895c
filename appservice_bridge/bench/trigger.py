"""What the capture costs the homeserver: inserts into device_inbox, with triggers and without.

pgbench's four clients insert one row of about 1 KB per DB transaction into a table made as Synapse
makes it. Nobody consumes the log meanwhile, so that only the cost in the homeserver's own DB
transaction is measured; somebody listens, as a worker does, and is woken.
"""

import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Final

from appservice_bridge.bench.figures import Side
from appservice_bridge.bench.filling import stored
from appservice_bridge.bench.scenario import Figures, Scenario
from appservice_bridge.bench.stage import Stage, connected
from appservice_bridge.dev.postgres_cluster import wheel_binaries
from appservice_bridge.dev.process import ChildCommand, ChildDiedError, ChildProcess
from appservice_bridge.domain.supported import NEWEST_SCHEMA_VERSION
from appservice_bridge.storage import synapse
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.notifications import CAPTURE

CLIENTS: Final = 4
TURNS: Final = 5
"""In a round; a figure is their median: a disk that syncs slower for seconds is not our cost."""
SYNAPSE_TABLES: Final = (
    "storage/schema/main/full_schemas/72/full.sql.postgres",
    "storage/schema/common/schema_version.sql",
)

INSERT: Final = r"""
\set user random(1, {users})
\set place random(1, 1000000000)
insert into public.device_inbox (user_id, device_id, stream_id, message_json)
values ('@{prefix}_' || :user || ':example.org', 'DEVICE', :place, '{message}');
"""
FOREIGN: Final = """
-- bench.foreign
insert into appservice_bridge.foreign_user
select '@f_' || n || ':example.org' from generate_series(1, $1::int) n
"""
VERSION: Final = """
-- bench.synapse_version
insert into public.schema_version (version, upgraded) values ($1, false)
"""
EMPTY: Final = "truncate public.device_inbox, appservice_bridge.capture_log"
SWITCH: Final = "alter table public.device_inbox {verb} trigger appservice_bridge_insert"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How one kind of window is made.

    Attributes:
        figure: under which its ratio to the first is shown; None: it is the first.
        prefix: of the recipients' names; those of `f` are on the list of the foreign.
    """

    figure: str | None
    prefix: str


WINDOWS: Final = (
    Window(figure=None, prefix="b"),
    Window(figure="unmatched", prefix="f"),
    Window(figure="", prefix="b"),
)


async def _attach(conn: Connection) -> None:
    """Synapse's tables, of the release that is installed here, with the capture on them."""
    await conn.execute("set search_path = public")
    for name in SYNAPSE_TABLES:
        await conn.execute((files("synapse") / name).read_text())
    await conn.execute(VERSION, NEWEST_SCHEMA_VERSION)
    await conn.execute("insert into public.stream_positions values ('to_device', 'master', 0)")
    await conn.execute("set search_path = appservice_bridge, public")
    await synapse.install(conn)


async def _rate(stage: Stage, dsn: str, conn: Connection, window: Window, users: int) -> float:
    """Rows per second in one window."""
    verb = "disable" if window.figure is None else "enable"
    await conn.execute(EMPTY)
    await conn.execute(SWITCH.format(verb=verb))
    directory = Path(tempfile.mkdtemp(prefix="pgbench-", dir=stage.directory))
    message = stored(1).decode()
    script = INSERT.format(users=users, prefix=window.prefix, message=message)
    (directory / "insert.sql").write_text(script)
    return await _pgbench(dsn, directory, seconds=stage.size(2, quick=1))


async def _pgbench(dsn: str, directory: Path, *, seconds: int) -> float:
    child = ChildProcess.start(
        ChildCommand(
            name="pgbench",
            arguments=[
                str(wheel_binaries() / "pgbench"),
                *("--no-vacuum", f"--client={CLIENTS}", "--jobs=2", f"--time={seconds}"),
                *(f"--file={directory / 'insert.sql'}", dsn),
            ],
            log=directory / "pgbench.log",
        )
    )
    try:
        code = await child.ended()
    finally:
        child.stop()
    printed = (directory / "pgbench.log").read_text()
    if code or "failed transactions: 0 " not in printed:
        raise ChildDiedError("pgbench", code, directory / "pgbench.log")
    (line,) = [one for one in printed.splitlines() if one.startswith("tps = ")]
    return float(line.split()[2])


async def _bridge(stage: Stage) -> Figures:
    users = stage.size(100_000, quick=10_000)
    turns: list[list[float]] = []
    async with stage.database() as dsn, connected(dsn) as conn, connected(dsn) as listener:
        await _attach(conn)
        await conn.execute(FOREIGN, users)
        await conn.execute("vacuum analyze appservice_bridge.foreign_user")
        await listener.add_listener(CAPTURE, lambda *_: None)
        for _ in range(stage.size(TURNS, quick=1)):
            rates = [await _rate(stage, dsn, conn, window, users) for window in WINDOWS]
            turns.append(rates)
    figures = {"without": median(without for without, *_ in turns)}
    for place, window in enumerate(WINDOWS):
        if window.figure is not None:
            figures[window.figure] = median(rates[place] / rates[0] for rates in turns)
    return figures


SCENARIOS: Final = (
    Scenario(
        name="trigger",
        about="the homeserver's inserts with the capture, matched and unmatched, to those without",
        units={"": "ratio", "unmatched": "ratio", "without": "rows/s"},
        sides={Side.BRIDGE: _bridge},
        quick=True,
    ),
)
