"""`replay`: what an appservice acknowledged and lost is delivered once more."""

from typing import Annotated

import typer

from appservice_bridge.cli.appservice_ids import AppserviceArgument
from appservice_bridge.cli.check import ConfigOption
from appservice_bridge.cli.context import author, finished, loaded, with_database
from appservice_bridge.cli.progress import bar
from appservice_bridge.config.loading import Loaded
from appservice_bridge.delivery.replaying import Kept, Replayed, replay_one, replay_since
from appservice_bridge.domain.duration import seconds_of
from appservice_bridge.storage.database import Database
from appservice_bridge.storage.orders import UnknownAppserviceError


def duration(text: str) -> float:
    """An option's length of time, in seconds."""
    try:
        return seconds_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def replay(
    config: ConfigOption,
    appservice_id: AppserviceArgument,
    transaction: Annotated[
        str | None, typer.Option(metavar="TXN_ID", help="The one transaction with this id.")
    ] = None,
    since: Annotated[
        float | None,
        typer.Option(
            parser=duration, metavar="DURATION", help="All it took since: 90s, 15m, 24h, 7d."
        ),
    ] = None,
) -> None:
    """Deliver once more what an appservice took, behind all that waits and under new ids.

    Works on what delivery.keep_delivered_seconds keeps, with no worker running as well.
    """
    if (transaction is None) == (since is None):
        raise typer.BadParameter("say either --transaction or --since")
    of = loaded(config)

    async def work(database: Database) -> Replayed:
        return await _replay(database, of, appservice_id, transaction, since)

    print(finished(with_database(of, work)).told)


async def _replay(
    database: Database, of: Loaded, appservice_id: str, txn_id: str | None, since: float | None
) -> Replayed:
    known = {one.id: of.config.settings(one).delivery for one in of.registrations}
    if appservice_id not in known:
        raise UnknownAppserviceError(appservice_id, known)
    kept = Kept(
        appservice_id=appservice_id,
        keep_seconds=known[appservice_id].keep_delivered_seconds,
        appservice_bytes=of.config.budget.limits().appservice_bytes,
    )
    if txn_id is not None:
        return await replay_one(database, kept, txn_id, by=author())
    with bar("replay") as tell:
        return await replay_since(database, kept, since or 0, by=author(), tell=tell)
