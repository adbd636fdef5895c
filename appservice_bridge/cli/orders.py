"""`pause`, `resume` and `retry`: what an operator says of one lane."""

from typing import Annotated, Final

import typer

from appservice_bridge.cli.appservice_ids import AppserviceArgument
from appservice_bridge.cli.check import ConfigOption
from appservice_bridge.cli.context import author, confirmed, finished, loaded, with_database
from appservice_bridge.config.loading import Loaded
from appservice_bridge.delivery import operating
from appservice_bridge.storage.database import Database
from appservice_bridge.storage.orders import Standing
from appservice_bridge.storage.owed import OwedTransaction

_UNSERVED: Final = "; no worker runs that serves it, so it waits for one: `appservice-bridge run`"

Split = Annotated[
    bool,
    typer.Option(
        "--split",
        help="Replace the transaction that it does not take by smaller ones, to find the one "
        "item it refuses. Where an attempt went unanswered, some items may then be seen twice.",
    ),
]
Bury = Annotated[
    bool,
    typer.Option(
        "--bury",
        help="Set the one item that it does not take aside as a dead letter, and go on with what "
        "follows; asks before it does. Of several items: --split first.",
    ),
]


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
    split: Split = False,
    bury: Bury = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --bury: do not ask.")] = False,
) -> None:
    """Send an appservice at once what it is owed, instead of waiting for the end of its rest.

    Also where its lane was halted. The transaction is the same, id and bytes, but with --split
    or --bury.
    """
    if (bury and split) or (yes and not bury):
        raise typer.BadParameter("give --split, or --bury [--yes]")
    of = loaded(config)
    if bury:
        _bury(of, appservice_id, yes=yes)
        return

    async def work(database: Database) -> Standing:
        return await operating.retry(database, appservice_id, by=author(), split=split)

    standing = finished(with_database(of, work))
    what = "is tried again now, and may be split" if split else "is tried again now"
    if not standing.in_flight:
        what = "has nothing in flight; what waits is sent now"
    print(f"{appservice_id} {what}{_unserved(standing)}")


def _bury(of: Loaded, appservice_id: str, *, yes: bool) -> None:
    """Ask whether it is this transaction, and have set aside this one or none."""

    async def choose(database: Database) -> OwedTransaction:
        return await operating.buriable(database, appservice_id)

    chosen = finished(with_database(of, choose))
    if not yes:
        doubt = ", though it may have been processed" if chosen.doubtful else ""
        confirmed(f"{_shown(chosen)} will not be delivered{doubt}. Bury it?")

    async def work(database: Database) -> Standing:
        return await operating.bury(database, appservice_id, chosen.txn_id, by=author())

    standing = finished(with_database(of, work))
    print(
        f"{chosen.txn_id} becomes a dead letter instead of being sent to {appservice_id} again, "
        f"unless it is acknowledged first{_unserved(standing)}"
    )


def _shown(one: OwedTransaction) -> str:
    what = "the one item" if one.items else "what is told of one user or device"
    return f"{one.txn_id}, {what} in it,"


def _unserved(standing: Standing) -> str:
    return "" if standing.served else _UNSERVED
