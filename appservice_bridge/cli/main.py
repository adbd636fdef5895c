"""The command line: one module per command, gathered here."""

import sys

import typer

from appservice_bridge.cli.audit import audit
from appservice_bridge.cli.backfill import backfill
from appservice_bridge.cli.check import check
from appservice_bridge.cli.dead_letters import dead_letters, discard, redrive
from appservice_bridge.cli.dev import dev
from appservice_bridge.cli.doctor import doctor
from appservice_bridge.cli.install import install, uninstall
from appservice_bridge.cli.migrate import migrate
from appservice_bridge.cli.orders import pause, resume, retry
from appservice_bridge.cli.ping import ping
from appservice_bridge.cli.registration import registration
from appservice_bridge.cli.removing import remove
from appservice_bridge.cli.replay import replay
from appservice_bridge.cli.resync import resync
from appservice_bridge.cli.run import run
from appservice_bridge.cli.status import status
from appservice_bridge.cli.top import top
from appservice_bridge.cli.transactions import transactions

app = typer.Typer(
    name="appservice-bridge",
    help="Deliver encryption traffic from a Matrix homeserver to its appservices, losing nothing.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (dev, run, check, doctor, migrate, install, uninstall):
    app.command()(command)
for look in (status, top, transactions, dead_letters, audit):
    app.command()(look)
for order in (ping, pause, resume, retry, redrive, discard, replay, resync, backfill):
    app.command()(order)
registration.command("remove")(remove)
app.add_typer(registration, name="registration")


def main() -> None:
    """Run the command line; exit 0 done, 1 refused or failed, 2 bad usage, 130 interrupted."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
