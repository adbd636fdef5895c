"""The command line: one module per command, gathered here."""

import typer

app = typer.Typer(
    name="appservice-bridge",
    help="Deliver encryption traffic from a Matrix homeserver to its appservices, losing nothing.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; exit 0 done, 1 refused or failed, 2 bad usage."""
    app()
