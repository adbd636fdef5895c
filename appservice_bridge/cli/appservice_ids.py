"""The argument that names an appservice, and what a shell completes it to."""

from pathlib import Path
from typing import Annotated, Final

import typer

from appservice_bridge.config.faults import ConfigError
from appservice_bridge.config.loading import load

HELP: Final = "The appservice's id, as its registration says."


def complete(ctx: typer.Context, incomplete: str) -> list[str]:
    """The ids in the registrations that begin so; none where the config is not known, or faulty."""
    config = ctx.params.get("config")
    if config is None:
        return []
    try:
        found = load(Path(config)).registrations
    except (ConfigError, OSError):
        return []
    return [one.id for one in found if one.id.startswith(incomplete)]


AppserviceArgument = Annotated[
    str, typer.Argument(metavar="ID", help=HELP, autocompletion=complete)
]
