"""`pause`, `resume` and `retry`: what an operator says of one lane."""

from typing import Annotated, Final

import typer

from appservice_bridge.cli.appservice_ids import AppserviceArgument
from appservice_bridge.cli.check import ConfigOption
from appservice_bridge.cli.context import author, finished, loaded, with_database
from appservice_bridge.delivery import operating
from appservice_bridge.storage.database import Database
from appservice_bridge.storage.orders import Standing

_UNSERVED: Final = "; no worker runs that serves it, so it waits for one: `appservice-bridge run`"


def pause(appservice_id: AppserviceArgument, config: ConfigOption) -> None:
    """Send an appservice nothing more until `resume`; what comes for it is kept, in order.

    A request that is under way is finished. Works with no worker running, and holds across
    restarts.
    """

    async def work(database: Database) -> Standing:
        return await operating.pause(database, appservice_id, by=author())

    standing = finished(with_database(loaded(config), work))
    was = "was paused already" if standing.paused_at else "is paused"
    print(f"{appservice_id} {was}; `appservice-bridge resume {appservice_id}` makes it go on")


def resume(appservice_id: AppserviceArgument, config: ConfigOption) -> None:
    """Let an appservice that was paused have what waits, at once and in order."""

    async def work(database: Database) -> Standing:
        return await operating.resume(database, appservice_id, by=author())

    standing = finished(with_database(loaded(config), work))
    goes_on = "goes on" if standing.paused_at else "was not paused, and goes on at once"
    print(f"{appservice_id} {goes_on}{_unserved(standing)}")


def retry(
    appservice_id: AppserviceArgument,
    config: ConfigOption,
    split: Annotated[
        bool,
        typer.Option(
            "--split",
            help="Replace the transaction that it does not take by smaller ones, to find the one "
            "item it refuses. Where an attempt went unanswered, some items may then be seen twice.",
        ),
    ] = False,
) -> None:
    """Send an appservice at once what it is owed, instead of waiting for the end of its rest.

    Also where its lane was halted. The transaction is the same, id and bytes, but with --split.
    """

    async def work(database: Database) -> Standing:
        return await operating.retry(database, appservice_id, by=author(), split=split)

    standing = finished(with_database(loaded(config), work))
    what = "is tried again now, and may be split" if split else "is tried again now"
    if not standing.in_flight:
        what = "has nothing in flight; what waits is sent now"
    print(f"{appservice_id} {what}{_unserved(standing)}")


def _unserved(standing: Standing) -> str:
    return "" if standing.served else _UNSERVED
