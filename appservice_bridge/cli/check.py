"""`check`: whether config and registrations are sound, with every fault at once."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

import typer

from appservice_bridge.config.environment import CONFIG_VARIABLE
from appservice_bridge.config.faults import ConfigError, Fault
from appservice_bridge.config.loading import Loaded, load
from appservice_bridge.config.model import EMBEDDED
from appservice_bridge.domain.supported import (
    NEWEST_POSTGRES,
    NEWEST_SYNAPSE,
    OLDEST_POSTGRES,
    OLDEST_SYNAPSE,
)

JSON_VERSION: Final = 1

ConfigOption = Annotated[
    Path,
    typer.Option(
        "--config", envvar=CONFIG_VARIABLE, metavar="FILE", help="The bridge's config file."
    ),
]


def check(
    config: ConfigOption,
    as_json: Annotated[
        bool,
        typer.Option("--json", help='{"version", "faults", "warnings"} on one line.'),
    ] = False,
) -> None:
    """Validate the config and all registrations; print every fault at once."""
    faults: tuple[Fault, ...] = ()
    summary = ""
    try:
        loaded = load(config)
        warnings, summary = loaded.warnings, _summary(config, loaded)
    except ConfigError as error:
        faults, warnings = error.faults, error.warnings
    if as_json:
        typer.echo(_as_json(faults, warnings))
    else:
        show(faults, warnings)
    if faults:
        raise typer.Exit(1)
    if not as_json:
        typer.echo(summary)


def show(faults: Iterable[Fault], warnings: Iterable[Fault] = ()) -> None:
    """Print faults and warnings to stderr, each on a line as `file:line: reason`."""
    for fault in faults:
        typer.echo(str(fault), err=True)
    for warning in warnings:
        typer.echo(f"{warning.place}: warning: {warning.reason}", err=True)


def _summary(config: Path, loaded: Loaded) -> str:
    count = len(loaded.registrations)
    noun = "registration" if count == 1 else "registrations"
    ids = ", ".join(registration.id for registration in loaded.registrations)
    sound = f"{config}: sound, {count} {noun}{': ' if ids else ''}{ids}"
    if loaded.config.database == EMBEDDED:
        return sound
    postgres = f"Postgres {OLDEST_POSTGRES} to {NEWEST_POSTGRES}"
    if loaded.config.homeserver.kind != "synapse":
        return f"{sound}\nworks with {postgres}"
    return f"{sound}\nworks with Synapse {OLDEST_SYNAPSE} to {NEWEST_SYNAPSE} on {postgres}"


def _as_json(faults: Iterable[Fault], warnings: Iterable[Fault]) -> str:
    return json.dumps(
        {
            "version": JSON_VERSION,
            "faults": [dataclasses.asdict(fault) for fault in faults],
            "warnings": [dataclasses.asdict(warning) for warning in warnings],
        }
    )
