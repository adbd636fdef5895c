"""`status`: every lane at one look."""

import dataclasses
import json
from datetime import datetime
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from appservice_bridge.cli.check import ConfigOption
from appservice_bridge.cli.context import finished, loaded, with_connection
from appservice_bridge.storage import migrations, overview, synapse
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.overview import LaneView

JSON_VERSION: Final = 1


def status(
    config: ConfigOption,
    as_json: Annotated[
        bool, typer.Option("--json", help="One object with version, capture and lanes.")
    ] = False,
) -> None:
    """Show lanes, backlog, oldest age and last error; works with no worker running."""
    of = loaded(config)
    reads_tables = of.config.homeserver.capture == "triggers"

    async def work(conn: Connection) -> tuple[list[LaneView], int, bool | None]:
        await migrations.require_current(conn)
        if reads_tables:
            await synapse.require_synapse(conn)
        installed = await synapse.is_installed(conn) if reads_tables else None
        return await overview.lanes(conn), await overview.captured(conn), installed

    lanes, captured, installed = finished(with_connection(of, work))
    if as_json:
        print(_as_json(lanes, captured, installed))
        return
    if installed is False:
        typer.echo("the capture is not installed: run `appservice-bridge install`", err=True)
    Console().print(_table(lanes))
    if captured:
        print(f"{captured} facts are captured and not routed yet")


def _as_json(lanes: list[LaneView], captured: int, installed: bool | None) -> str:
    return json.dumps(
        {
            "version": JSON_VERSION,
            "capture_installed": installed,
            "captured": captured,
            "lanes": [
                {"state": lane.state}
                | {
                    key: value.isoformat() if isinstance(value, datetime) else value
                    for key, value in dataclasses.asdict(lane).items()
                    if value != float("inf")
                }
                for lane in lanes
            ],
        }
    )


def _table(lanes: list[LaneView]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right" if heading in _NUMBERS else "left")
    for lane in lanes:
        table.add_row(
            lane.appservice_id,
            lane.state,
            str(lane.waiting),
            str(lane.device_updates),
            "-" if lane.oldest_seconds is None else f"{lane.oldest_seconds:.0f} s",
            str(lane.delivered),
            _last_answer(lane),
        )
    return table


_HEADINGS: Final = (
    "appservice",
    "state",
    "waiting",
    "device updates",
    "oldest",
    "delivered",
    "last answer",
)
_NUMBERS: Final = ("waiting", "device updates", "oldest", "delivered")


def _last_answer(lane: LaneView) -> str:
    if lane.last_outcome is None:
        return "nothing sent yet"
    told = f"{lane.last_outcome}, {lane.failed_attempts} times" if lane.failed_attempts else "ack"
    rest = f", again in {lane.rest_seconds:.0f} s" if 0 < lane.rest_seconds < 1e9 else ""
    return told + rest
