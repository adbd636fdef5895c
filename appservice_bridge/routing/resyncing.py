"""An operator's order: one appservice is told everything of devices again."""

from typing import Final

from appservice_bridge.domain.author import Author
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.nearest import hint
from appservice_bridge.domain.owners import Owners
from appservice_bridge.domain.progress import Tell, nobody
from appservice_bridge.routing.seeding import Seeded, Seeding
from appservice_bridge.storage import admin_audit, synapse
from appservice_bridge.storage.database import Database

ACTION: Final = "resync"


class NoEncryptionError(BridgeError):
    """No appservice that takes part in encryption has this id."""

    def __init__(self, appservice_id: str, known: tuple[str, ...]) -> None:
        meant = hint(appservice_id, known)
        super().__init__(f"no appservice {appservice_id} that gets encryption data; {meant}")


class NothingToReadError(BridgeError):
    """The homeserver's tables are not read."""

    def __init__(self) -> None:
        super().__init__(
            "this reads device state in Synapse's tables, and the config says not to: "
            "homeserver.kind is generic or homeserver.capture is none"
        )


async def resync(
    database: Database,
    owners: Owners,
    appservice_id: str,
    *,
    reads_synapse: bool,
    by: Author,
    tell: Tell = nobody,
) -> Seeded:
    """Dying in between leaves some told and others not, and nothing wrong: run it again.

    Raises:
        NothingToReadError, NoEncryptionError, OtherRegistrationsError: as they say.
        SourceUnreadableError: Synapse's tables are not as they were.
    """
    if not reads_synapse:
        raise NothingToReadError
    if appservice_id not in owners.encrypted:
        raise NoEncryptionError(appservice_id, owners.encrypted)
    async with database.transaction() as conn:
        await synapse.require_synapse(conn)
    await _put_down(database, by, appservice_id, "begun")
    seeded = await Seeding(database, owners, [appservice_id], tell).run()
    await _put_down(database, by, appservice_id, told(seeded))
    return seeded


def told(seeded: Seeded) -> str:
    """What will be told, in a sentence."""
    users = "1 user" if seeded.changed == 1 else f"{seeded.changed} users"
    devices = "1 device" if seeded.devices == 1 else f"{seeded.devices} devices"
    left = f"; {seeded.left} left" if seeded.left else ""
    return f"{users}, {devices} will be told again{left}"


async def _put_down(database: Database, by: Author, appservice_id: str, outcome: str) -> None:
    async with database.transaction() as conn:
        await admin_audit.write(conn, by, ACTION, appservice_id=appservice_id, outcome=outcome)
