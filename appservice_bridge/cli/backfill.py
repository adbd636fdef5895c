"""`backfill`: deliver what the homeserver's inbox still holds from before the bridge."""

from typing import Annotated

import typer

from appservice_bridge.cli.appservice_ids import AppserviceArgument
from appservice_bridge.cli.check import ConfigOption
from appservice_bridge.cli.context import author, finished, loaded, owners, with_database
from appservice_bridge.cli.progress import bar
from appservice_bridge.cli.synapse_side import reads_synapse
from appservice_bridge.routing.backfilling import Backfill, Backfilled
from appservice_bridge.storage.database import Database


def backfill(
    config: ConfigOption,
    appservice_id: AppserviceArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how many messages that would be.")
    ] = False,
) -> None:
    """Deliver what the inbox holds of an appservice's users from before it was attached.

    A message goes to every appservice that owns its user, as always, and behind all that waits.
    Those that were routed before are left out, and so are those of deleted devices. Works with no
    worker running, and may be stopped and run again at any time.
    """
    of = loaded(config)

    async def work(database: Database) -> Backfilled:
        with bar("backfill") as tell:
            found = Backfill(
                database, owners(of), appservice_id, reads_synapse=reads_synapse(of), tell=tell
            )
            return await (found.look() if dry_run else found.run(by=author()))

    told = finished(with_database(of, work))
    would = "would be" if dry_run else "will be"
    print(f"{told.messages} messages of {told.devices} devices {would} delivered")
