"""The command line: one module per command, gathered here and read when it is asked for."""

import sys
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.main import get_command

from appservice_bridge.cli.flags import Command, Group

# Reading them all would take each command longer than its work.
COMMANDS: Final = {
    "dev": "dev",
    "run": "run",
    "check": "check",
    "doctor": "doctor",
    "migrate": "migrate",
    "install": "install",
    "uninstall": "install",
    "status": "status",
    "top": "top",
    "transactions": "transactions",
    "dead-letters": "dead_letters",
    "audit": "audit",
    "ping": "ping",
    "pause": "orders",
    "resume": "orders",
    "retry": "orders",
    "redrive": "dead_letters",
    "discard": "dead_letters",
    "replay": "replay",
    "resync": "resync",
    "backfill": "backfill",
    "registration": "registration",
    "bench": "bench",
}
"""Which module of this room holds a command, in the order in which --help shows them."""


class Commands(Group):
    """Finds a command in its module, under the command's own name."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All of them."""
        return list(COMMANDS)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The same as ever; for a name that is misspelt, the names it may mean are looked up."""
        self.commands.update(dict.fromkeys(COMMANDS))  # type: ignore[arg-type]
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The one that is asked for; None: there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"appservice_bridge.cli.{COMMANDS[cmd_name]}")
        found = getattr(module, cmd_name.replace("-", "_"))
        if isinstance(found, typer.Typer):
            return get_command(found)
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        alone.command(cmd_name, cls=Command)(found)
        return get_command(alone)


app = typer.Typer(
    name="appservice-bridge",
    help="Deliver encryption traffic from a Matrix homeserver to its appservices, losing nothing.",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},  # commands inherit it
)


def _say_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(version("appservice-bridge"))
        raise typer.Exit


@app.callback()
def _program(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_say_version, is_eager=True, help="Say which release this is."
        ),
    ] = False,
) -> None:
    """Deliver encryption traffic from a Matrix homeserver to its appservices, losing nothing."""


def main() -> None:
    """Run the command line; exit 0 done, 1 refused or failed, 2 bad usage, 130 interrupted."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
