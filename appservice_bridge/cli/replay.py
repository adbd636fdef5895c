"""`replay`: what an appservice acknowledged and lost is delivered once more."""

from collections import Counter
from typing import Annotated

import typer

from appservice_bridge.cli.appservice_ids import AppserviceArgument
from appservice_bridge.cli.check import ConfigOption
from appservice_bridge.cli.context import finished, loaded, with_connection
from appservice_bridge.config.loading import Loaded
from appservice_bridge.delivery.operating import UnknownAppserviceError
from appservice_bridge.domain.duration import seconds_of
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.domain.transaction import Kind
from appservice_bridge.storage import kept, ledger, migrations, notifications, registrations
from appservice_bridge.storage.budget import require_space
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.ledger import LedgerKey


class NothingKeptError(BridgeError):
    """There is nothing that could be replayed."""

    def __init__(self, appservice_id: str, keep_seconds: float) -> None:
        kept_for = f"what it took is kept for {keep_seconds:.0f} s"
        if not keep_seconds:
            kept_for = "delivery.keep_delivered_seconds is 0: nothing that it took is kept"
        super().__init__(f"nothing of {appservice_id} to replay; {kept_for}")


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

    async def work(conn: Connection) -> str:
        return await _replay(conn, of, appservice_id, transaction, since)

    print(finished(with_connection(of, work)))


async def _replay(
    conn: Connection, of: Loaded, appservice_id: str, txn_id: str | None, since: float | None
) -> str:
    """Dying in between leaves the oldest replayed and the rest as it was."""
    known = {one.id: of.config.settings(one).delivery for one in of.registrations}
    if appservice_id not in known:
        raise UnknownAppserviceError(appservice_id, known)
    await migrations.require_current(conn)
    keep_seconds = known[appservice_id].keep_delivered_seconds
    if txn_id is not None:
        numbers = await kept.of_txn_id(conn, appservice_id, txn_id, keep_seconds=keep_seconds)
    else:
        numbers = await kept.since(conn, appservice_id, seconds=min(since or 0, keep_seconds))
    limit = of.config.budget.limits().appservice_bytes
    told: Counter[Kind] = Counter()
    for number in numbers:
        told.update(await _replay_one(conn, appservice_id, number, appservice_bytes=limit))
    if not told:
        raise NothingKeptError(appservice_id, keep_seconds)
    items = ", ".join(f"{told[kind]} {kind}" for kind in Kind if told[kind])
    return f"{items} of {len(numbers)} transactions will be delivered again"


async def _replay_one(
    conn: Connection, appservice_id: str, number: int, *, appservice_bytes: int
) -> dict[Kind, int]:
    """Dying before the commit leaves the outbox as it was.

    Raises:
        OverBudgetError: there is no room for it to wait.
    """
    async with conn.transaction():
        await registrations.wait_for_gate(conn)  # whoever holds it gives the positions
        await require_space(conn, appservice_id, appservice_bytes=appservice_bytes)
        told = await kept.replay(conn, appservice_id, number)
        if told:
            replayed = LedgerOutcome.REPLAYED
            counts = {LedgerKey(appservice_id, kind, replayed): n for kind, n in told.items()}
            await ledger.count(conn, counts)
            await notifications.notify(conn, notifications.OUTBOX)
    return told
