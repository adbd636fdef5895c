"""`doctor`: looks at the running system, and says of each fault what to change."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Final

import aiohttp
import typer
from rich.console import Console

from appservice_bridge.cli.check import ConfigOption
from appservice_bridge.cli.context import finished, loaded, owners, with_connection
from appservice_bridge.cli.synapse_side import reads_synapse
from appservice_bridge.config.faults import ConfigError
from appservice_bridge.config.loading import Loaded
from appservice_bridge.doctor.appservices import unreachable
from appservice_bridge.doctor.database import database
from appservice_bridge.doctor.devices import devices_lacking
from appservice_bridge.doctor.finding import Finding, Level
from appservice_bridge.doctor.homeserver import HomeserverAsked
from appservice_bridge.doctor.homeserver_file import homeserver_file
from appservice_bridge.doctor.server_name import other_server_name
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.supported import NEWEST_SYNAPSE, OLDEST_SYNAPSE
from appservice_bridge.storage import synapse
from appservice_bridge.storage.database import (
    Connection,
    DatabaseUnavailableError,
    SourceUnreadableError,
    reading_synapse,
)

JSON_VERSION: Final = 1
_START: Final = "start Postgres, or mend `database` in the config"
_LOOK: Final = "mend what it names; the log of Postgres says more"
_LET_READ: Final = (
    "the owner of the homeserver's database must run what"
    " `appservice-bridge install --print-grants` prints; if the table is another"
    " than it was, run a release that knows this Synapse"
)
_STYLES: Final = {Level.FAULT: "bold red", Level.DOUBT: "yellow"}


def doctor(
    config: ConfigOption,
    homeserver_config: Annotated[
        Path | None,
        typer.Option(
            "--homeserver-config",
            metavar="FILE",
            help="Synapse's homeserver.yaml, where it can be read from here: its flags and its "
            "copies of the registrations are looked at, too.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help='{"version", "homeserver", "findings"} on one line.')
    ] = False,
) -> None:
    """Look at homeserver, database and appservices, and say how to mend what is wrong.

    Ends 1 if anything is not delivered, or will not be; doubts alone end 0.
    """
    of = loaded(config)
    release, findings = finished(_examine(of, homeserver_config))
    if as_json:
        typer.echo(_as_json(release, findings))
    else:
        _show(release, findings)
    if any(finding.level is Level.FAULT for finding in findings):
        raise typer.Exit(1)


async def _examine(of: Loaded, file: Path | None) -> tuple[str | None, list[Finding]]:
    findings: list[Finding] = []
    if file is not None:
        findings += _in_file(file, of)
    findings += await _in_database(of)
    async with aiohttp.ClientSession() as session:
        homeserver = HomeserverAsked(session, of)
        findings += [finding async for finding in homeserver.findings()]
        findings += await unreachable(session, of)
    once = dict.fromkeys(findings)  # two may know the same
    return homeserver.release, sorted(once, key=lambda one: one.level is Level.DOUBT)


def _in_file(file: Path, of: Loaded) -> list[Finding]:
    try:
        return [*homeserver_file(file, of)]
    except ConfigError as error:
        mend = "give the path of homeserver.yaml with --homeserver-config"
        what = str(error.faults[0])
        return [Finding(code="homeserver_file", what=what, mend=mend)]


async def _in_database(of: Loaded) -> list[Finding]:
    """What was found before an error is kept."""
    found: list[Finding] = []

    async def look(conn: Connection) -> None:
        found.extend(await database(conn, of))
        if reads_synapse(of) and not any(finding.code == "not_synapse" for finding in found):
            found.extend(await _in_synapse(conn, of))

    try:
        await with_connection(of, look)
    except BridgeError as error:
        away = isinstance(error, DatabaseUnavailableError)
        mend = error.mend or (_START if away else _LOOK)
        found.append(Finding(code="database", what=error.told, mend=mend))
    return found


async def _in_synapse(conn: Connection, of: Loaded) -> list[Finding]:
    found: list[Finding] = []
    try:
        with reading_synapse():
            name = await synapse.other_server_name(conn, of.config.homeserver.server_name)
            found += other_server_name(of, name)
            found += await devices_lacking(conn, owners(of))
    except SourceUnreadableError as error:
        found.append(Finding(code="synapse_unreadable", what=str(error), mend=_LET_READ))
    return found


def _show(release: str | None, findings: list[Finding]) -> None:
    console = Console()
    for finding in findings:
        whose = "" if finding.appservice is None else f"{finding.appservice}: "
        console.print(f"{finding.level}:", style=_STYLES[finding.level], end=" ")
        for line in (f"{whose}{finding.what}", f"  {finding.mend}"):  # whole, to be copied
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    known = f"the bridge works with Synapse {OLDEST_SYNAPSE} to {NEWEST_SYNAPSE}"
    print(f"homeserver: {release or 'unknown release'}; {known}")
    faults = sum(finding.level is Level.FAULT for finding in findings)
    counted = (_counted(faults, Level.FAULT), _counted(len(findings) - faults, Level.DOUBT))
    print(", ".join(counted) if findings else "all is well")


def _counted(count: int, level: Level) -> str:
    return f"{count} {level}" + ("" if count == 1 else "s")


def _as_json(release: str | None, findings: list[Finding]) -> str:
    return json.dumps(
        {
            "version": JSON_VERSION,
            "homeserver": release,
            "supported": {"oldest": OLDEST_SYNAPSE, "newest": NEWEST_SYNAPSE},
            "findings": [dataclasses.asdict(finding) for finding in findings],
        }
    )
