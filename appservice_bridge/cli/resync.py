"""`resync`: one appservice is told everything of devices again."""

from appservice_bridge.cli.appservice_ids import AppserviceArgument
from appservice_bridge.cli.check import ConfigOption
from appservice_bridge.cli.context import author, finished, loaded, owners, with_database
from appservice_bridge.cli.progress import bar
from appservice_bridge.cli.synapse_side import reads_synapse
from appservice_bridge.routing.resyncing import resync as tell_again
from appservice_bridge.routing.resyncing import told
from appservice_bridge.routing.seeding import Seeded
from appservice_bridge.storage.database import Database


def resync(
    appservice_id: AppserviceArgument,
    config: ConfigOption,
) -> None:
    """Tell an appservice again of every user it shares a room with, and of all its devices."""
    of = loaded(config)

    async def work(database: Database) -> Seeded:
        reads = reads_synapse(of)
        with bar("resync") as tell:
            return await tell_again(
                database, owners(of), appservice_id, reads_synapse=reads, by=author(), tell=tell
            )

    print(told(finished(with_database(of, work))))
