"""What the capture costs the homeserver: inserts into device_inbox, with triggers and without.

pgbench's four clients say to tables made as Synapse makes them what Synapse 1.163 says for one
message of about 1 KB to one device, as its log of statements has it: the next number of the stream,
and a DB transaction that looks for the device and inserts. Beside it the insert alone, which is
harder: nothing of the homeserver's own dilutes the cost. Nobody consumes the log meanwhile, so that
only the cost in the homeserver's own DB transaction is measured; somebody listens, as a worker
does, and is woken.
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

OWN: Final = r"""
\set user random(1, {users})
select nextval('device_inbox_sequence') as place from generate_series(1, 1) \gset
begin isolation level repeatable read;
select device_id from devices where device_id = any(array['DEVICE'])
   and user_id = '@{prefix}_' || :user || ':example.org' and hidden = false;
insert into device_inbox (user_id, device_id, stream_id, message_json, instance_name)
values ('@{prefix}_' || :user || ':example.org', 'DEVICE', :place, '{message}', 'master');
commit;
"""
BARE: Final = r"""
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
DEVICES: Final = """
-- bench.devices: of all recipients
insert into public.devices (user_id, device_id)
select '@' || prefix || '_' || n || ':example.org', 'DEVICE'
  from generate_series(1, $1::int) n, unnest(array['b', 'f']) prefix
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
        figure: under which it is shown: rows per second without the capture, else the ratio to it.
        script: what a client says again and again.
        prefix: of the recipients' names; those of `f` are on the list of the foreign.
        without: the figure of the window without the capture; None: it is one.
    """

    figure: str
    script: str
    prefix: str
    without: str | None = None


WINDOWS: Final = (
    Window(figure="without", script=OWN, prefix="b"),
    Window(figure="unmatched", script=OWN, prefix="f", without="without"),
    Window(figure="", script=OWN, prefix="b", without="without"),
    Window(figure="bare-without", script=BARE, prefix="b"),
    Window(figure="bare-unmatched", script=BARE, prefix="f", without="bare-without"),
    Window(figure="bare", script=BARE, prefix="b", without="bare-without"),
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
    verb = "disable" if window.without is None else "enable"
    await conn.execute(EMPTY)
    await conn.execute(SWITCH.format(verb=verb))
    directory = Path(tempfile.mkdtemp(prefix="pgbench-", dir=stage.directory))
    message = stored(1).decode()
    script = window.script.format(users=users, prefix=window.prefix, message=message)
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
    turns: list[dict[str, float]] = []
    async with stage.database() as dsn, connected(dsn) as conn, connected(dsn) as listener:
        await _attach(conn)
        await conn.execute(FOREIGN, users)
        await conn.execute(DEVICES, users)
        await conn.execute("vacuum analyze appservice_bridge.foreign_user, public.devices")
        await listener.add_listener(CAPTURE, lambda *_: None)
        for _ in range(stage.size(TURNS, quick=1)):
            rates = {one.figure: await _rate(stage, dsn, conn, one, users) for one in WINDOWS}
            turns.append(rates)
    return {one.figure: median(_shown(one, rates) for rates in turns) for one in WINDOWS}


def _shown(window: Window, rates: dict[str, float]) -> float:
    rate = rates[window.figure]
    return rate if window.without is None else rate / rates[window.without]


SCENARIOS: Final = (
    Scenario(
        name="trigger",
        about="Synapse's inserts with the capture, matched and unmatched, to those without; bare: "
        "the statement alone, outside its DB transaction",
        units={
            "": "ratio",
            "unmatched": "ratio",
            "without": "rows/s",
            "bare": "ratio",
            "bare-unmatched": "ratio",
            "bare-without": "rows/s",
        },
        sides={Side.BRIDGE: _bridge},
        quick=True,
    ),
)
