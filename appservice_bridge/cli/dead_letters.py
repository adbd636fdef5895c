"""`dead-letters`, `redrive` and `discard`: what was set aside, put back or given up."""

from typing import Annotated, Final, TypeAlias
from uuid import UUID

import typer

from appservice_bridge.cli.appservice_ids import HELP, complete
from appservice_bridge.cli.check import ConfigOption
from appservice_bridge.cli.context import author, confirmed, finished, loaded, with_database
from appservice_bridge.cli.progress import bar
from appservice_bridge.cli.shown import as_json, moment, print_table, table
from appservice_bridge.delivery import operating
from appservice_bridge.storage.database import Database
from appservice_bridge.storage.letters import Letter

JSON_VERSION: Final = 1
MOST: Final = 1000

_HEADINGS: Final = ("id", "buried", "appservice", "kind", "to", "bytes", "reason", "redrivable")

_Chosen: TypeAlias = dict[str, list[UUID]]

Letters = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DEAD_LETTER...",
        help="Their ids, or as much of each as is its own.",
        show_default=False,
    ),
]
OfAppservice = Annotated[
    str | None,
    typer.Option(
        "--appservice", metavar="ID", help="All of this appservice.", autocompletion=complete
    ),
]


def dead_letters(
    config: ConfigOption,
    appservice_id: Annotated[
        str | None,
        typer.Argument(
            metavar="ID",
            help=f"{HELP} Without it, those of all appservices and those that are nobody's.",
            autocompletion=complete,
        ),
    ] = None,
    most: Annotated[
        int, typer.Option("--limit", min=1, metavar="N", help="No more than the newest N.")
    ] = MOST,
    json: Annotated[
        bool, typer.Option("--json", help="One object with version, total and dead_letters.")
    ] = False,
) -> None:
    """List what could not be delivered and was set aside, oldest first; never what is in it.

    `redrive` puts one back, `discard` deletes it. An id may be given by its beginning.
    """

    async def work(database: Database) -> tuple[list[Letter], int]:
        return await operating.dead_letters(database, appservice_id, most=most)

    found, total = finished(with_database(loaded(config), work))
    if json:
        print(as_json(JSON_VERSION, total=total, dead_letters=found))
        return
    if found:
        print_table(table(_HEADINGS, map(_row, found), numbers=("bytes",)))
    print(_counted(len(found), total))


def redrive(
    config: ConfigOption, letters: Letters = None, appservice_id: OfAppservice = None
) -> None:
    """Put dead letters back: they are delivered after all that waits now.

    What is nothing that could be sent, because it came malformed say, or whose device was deleted
    since, is refused, and stays. With --appservice all that can be goes, and the rest is counted.
    """
    _require_one(letters, appservice_id)
    of = loaded(config)

    async def work(database: Database) -> tuple[int, int, list[Letter]]:
        return await _redriven(database, letters, appservice_id)

    done, stayed, refused = finished(with_database(of, work))
    if done or not refused:
        print(f"{_letters(done)} will be delivered, behind all that waits")
    if stayed:
        print(f"{_letters(stayed)} cannot be, and stay; `appservice-bridge dead-letters` says why")
    for one in refused:
        reason = operating.why_not(one)
        typer.echo(f"appservice-bridge: {one.short_id} cannot be redriven: {reason}", err=True)
    if refused:
        raise typer.Exit(1)


def discard(
    config: ConfigOption,
    letters: Letters = None,
    appservice_id: OfAppservice = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete dead letters for good; asks before it does.

    The ledger counts them as `discarded`. What is in them is not delivered, ever.
    """
    _require_one(letters, appservice_id)
    of = loaded(config)

    async def choose(database: Database) -> _Chosen:
        return await _chosen(database, letters, appservice_id)

    chosen = finished(with_database(of, choose))
    count = sum(map(len, chosen.values()))
    if count and not yes:
        confirmed(f"{_letters(count)} will be lost for good. Discard?")

    async def work(database: Database) -> int:
        with bar("discard") as tell:
            discarded = [
                await operating.discard(database, *one, by=author(), tell=tell)
                for one in chosen.items()
            ]
        return sum(map(len, discarded))

    print(f"{_letters(finished(with_database(of, work)))} discarded")


def _require_one(letters: list[str] | None, appservice_id: str | None) -> None:
    """Refuse neither and both, as bad usage."""
    if bool(letters) == (appservice_id is not None):
        raise typer.BadParameter("give either ids of dead letters, or --appservice ID")


async def _chosen(
    database: Database, letters: list[str] | None, appservice_id: str | None
) -> _Chosen:
    if appservice_id is not None:
        return {appservice_id: await operating.all_of(database, appservice_id)}
    return operating.by_appservice(await operating.find(database, letters or []))


async def _redriven(
    database: Database, letters: list[str] | None, appservice_id: str | None
) -> tuple[int, int, list[Letter]]:
    """How many were put back; of a whole appservice how many stay, else which were refused."""
    named = await operating.find(database, letters or [])
    chosen = operating.by_appservice(named)
    if appservice_id is not None:
        chosen = {appservice_id: await operating.all_of(database, appservice_id)}
    done: set[UUID] = set()
    with bar("redrive") as tell:
        for one in chosen.items():
            done |= await operating.redrive(database, *one, by=author(), tell=tell)
    stayed = 0 if named else sum(map(len, chosen.values())) - len(done)
    return len(done), stayed, [one for one in named if one.dead_letter_id not in done]


def _row(one: Letter) -> tuple[str, ...]:
    return (
        one.short_id,
        moment(one.buried_at),
        one.appservice_id or "-",
        one.kind,
        " ".join(part for part in (one.user_id, one.device_id) if part) or "-",
        f"{one.bytes:,}",
        _why(one),
        "yes" if one.redrivable else "no",
    )


def _why(one: Letter) -> str:
    known = (one.status, one.errcode, f"in {one.txn_id}" if one.txn_id else None)
    more = " ".join(str(part) for part in known if part is not None)
    return one.reason + (f" ({more})" if more else "")


def _counted(shown: int, total: int) -> str:
    if shown < total:
        return f"the newest {shown} of {_letters(total)}; --limit shows more"
    return _letters(total)


def _letters(count: int) -> str:
    return "1 dead letter" if count == 1 else f"{count} dead letters"
