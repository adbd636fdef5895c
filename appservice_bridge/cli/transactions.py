"""`transactions`: what an appservice was sent, or will be sent next, and did not acknowledge."""

from typing import Annotated, Final

import typer

from appservice_bridge.cli.appservice_ids import AppserviceArgument
from appservice_bridge.cli.check import ConfigOption
from appservice_bridge.cli.context import finished, loaded, with_database
from appservice_bridge.cli.shown import as_json, moment, print_table, table
from appservice_bridge.delivery import operating
from appservice_bridge.delivery.operating import Owed
from appservice_bridge.storage.database import Database
from appservice_bridge.storage.owed import LaneLast, OwedTransaction

JSON_VERSION: Final = 1
_HEADINGS: Final = ("transaction", "items", "devices", "bytes", "sealed", "refusals counted", "")
_NUMBERS: Final = ("items", "devices", "bytes", "refusals counted")


def transactions(
    appservice_id: AppserviceArgument,
    config: ConfigOption,
    json: Annotated[
        bool, typer.Option("--json", help="One object with version, transactions and lane.")
    ] = False,
) -> None:
    """Show what is sealed for an appservice and not acknowledged, and what came of it last.

    A sealed transaction keeps its id and bytes until it is acknowledged. Usually there is one;
    more where one that was refused was split. What it holds is not shown.

    Counted are the refusals that may be the transaction's own fault; a part of one that may have
    been processed begins with most of those that it takes to split it again.
    """

    async def work(database: Database) -> Owed:
        return await operating.transactions(database, appservice_id)

    seen = finished(with_database(loaded(config), work))
    if json:
        print(as_json(JSON_VERSION, transactions=seen.transactions, lane=seen.last))
        return
    if seen.transactions:
        print_table(table(_HEADINGS, map(_row, seen.transactions), numbers=_NUMBERS))
    else:
        print("nothing is sealed and not acknowledged")
    print(_last(appservice_id, seen.last))


def _row(one: OwedTransaction) -> tuple[str, ...]:
    return (
        one.txn_id,
        str(one.items),
        str(one.device_lists + one.device_keys),
        f"{one.body_bytes:,}",
        moment(one.sealed_at),
        str(one.refusals),
        _remarks(one),
    )


def _remarks(one: OwedTransaction) -> str:
    said = ["may have been processed"] if one.doubtful else []
    if one.part_of is not None:
        said.append(f"part of {one.part_of}")
    if one.bury_asked_at is not None:
        said.append(f"to be set aside since {moment(one.bury_asked_at)}")
    return ", ".join(said)


def _last(appservice_id: str, last: LaneLast) -> str:
    if last.paused_at is not None:
        return (
            f"paused since {moment(last.paused_at)} UTC: `appservice-bridge resume {appservice_id}`"
        )
    if last.last_outcome is None:
        return "nothing was sent yet"
    if last.rest_seconds == float("inf"):
        return (
            f"halted ({last.last_outcome}): nothing more is sent before "
            f"`appservice-bridge retry {appservice_id}`"
        )
    if not last.failed_attempts:
        return f"last answer: {last.last_outcome}"
    rest = f", again in {last.rest_seconds:.0f} s" if last.rest_seconds else ""
    status = f" (status {last.last_status})" if last.last_status else ""
    return f"last answer: {last.last_outcome}{status}, {last.failed_attempts} attempts failed{rest}"
