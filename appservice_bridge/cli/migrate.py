"""`migrate`: bring the bridge's own schema up to this release."""

from typing import Annotated

import typer

from appservice_bridge.cli.check import ConfigOption
from appservice_bridge.cli.context import author, finished, loaded, with_connection
from appservice_bridge.storage import admin_audit, migrations
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.identity import current_epoch


def migrate(
    config: ConfigOption,
    restored: Annotated[
        bool,
        typer.Option(
            "--restored",
            help="The database was restored from a dump: give out no transaction id again.",
        ),
    ] = False,
) -> None:
    """Create or update the bridge's own tables, in Postgres schema appservice_bridge."""

    async def work(conn: Connection) -> list[int]:
        applied = await migrations.migrate(conn)
        if restored:
            async with conn.transaction():
                await current_epoch(conn, restored=True)
                await admin_audit.write(conn, author(), "migrate", outcome="restored: a new epoch")
        return applied

    applied = finished(with_connection(loaded(config), work))
    if applied:
        print(f"applied {', '.join(f'{number:04}' for number in applied)}")
    else:
        print("nothing to do: the schema has all that this release needs")
