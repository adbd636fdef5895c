"""`resync`: one appservice is told everything of devices again."""

from appservice_bridge.cli.appservice_ids import AppserviceArgument
from appservice_bridge.cli.check import ConfigOption
from appservice_bridge.cli.context import finished, loaded, owners, with_connection
from appservice_bridge.cli.synapse_side import reads_synapse
from appservice_bridge.config.loading import Loaded
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.routing.seeding import Seeded, Seeding
from appservice_bridge.storage import migrations, synapse
from appservice_bridge.storage.database import Database


class NoEncryptionError(BridgeError):
    """No appservice that takes part in encryption has this id."""

    def __init__(self, appservice_id: str, known: tuple[str, ...]) -> None:
        names = ", ".join(known) or "none"
        super().__init__(f"no appservice {appservice_id} that gets encryption data; known: {names}")


class NothingToReadError(BridgeError):
    """The homeserver's tables are not read."""

    def __init__(self) -> None:
        super().__init__(
            "this reads device state in Synapse's tables, and the config says not to: "
            "homeserver.kind is generic or homeserver.capture is none"
        )


def resync(
    appservice_id: AppserviceArgument,
    config: ConfigOption,
) -> None:
    """Tell an appservice again of every user it shares a room with, and of all its devices."""
    print(told(finished(_resync(loaded(config), appservice_id))))


def told(seeded: Seeded) -> str:
    """What will be told, in a sentence."""
    users = "1 user" if seeded.changed == 1 else f"{seeded.changed} users"
    devices = "1 device" if seeded.devices == 1 else f"{seeded.devices} devices"
    left = f"; {seeded.left} left" if seeded.left else ""
    return f"{users}, {devices} will be told again{left}"


async def _resync(of: Loaded, appservice_id: str) -> Seeded:
    """Dying in between leaves some told and others not, and nothing wrong: run it again."""
    known = owners(of)
    if not reads_synapse(of):
        raise NothingToReadError
    if appservice_id not in known.encrypted:
        raise NoEncryptionError(appservice_id, known.encrypted)
    await with_connection(of, migrations.require_current)
    await with_connection(of, synapse.require_synapse)
    async with Database.open(of.config.dsn(), max_connections=1) as database:
        return await Seeding(database, known, [appservice_id]).run()
