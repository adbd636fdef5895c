"""`migrate`: bring the bridge's own schema up to this release."""

from appservice_bridge.cli.check import ConfigOption
from appservice_bridge.cli.context import finished, loaded, with_connection
from appservice_bridge.storage import migrations


def migrate(config: ConfigOption) -> None:
    """Create or update the bridge's own tables, in Postgres schema appservice_bridge."""
    applied = finished(with_connection(loaded(config), migrations.migrate))
    if applied:
        print(f"applied {', '.join(f'{number:04}' for number in applied)}")
    else:
        print("nothing to do: the schema is this release's")
