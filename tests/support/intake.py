"""Intake on a test's database, for one appservice `bot` that owns @b_*."""

from collections.abc import AsyncIterator

import pytest

from appservice_bridge.domain.owners import Owners
from appservice_bridge.domain.registration import Namespace, Registration
from appservice_bridge.routing import intake as intake_module
from appservice_bridge.routing.announcing import announce, go_live
from appservice_bridge.routing.intake import Intake
from appservice_bridge.storage.database import Database
from appservice_bridge.storage.straight import Grown


def registered(*appservices: tuple[str, str]) -> Owners:
    """Appservices by id, each with one namespace."""
    return Owners(
        [
            Registration(
                id=id_,
                url="http://127.0.0.1:9",
                as_token=f"as_{id_}",
                hs_token=f"hs_{id_}",
                sender_localpart=f"{id_}_bot",
                users=(Namespace(regex=regex, exclusive=True),),
                source="test",
            )
            for id_, regex in appservices
        ],
        server_name="example.org",
    )


async def nobody(_grown: Grown) -> None:
    """No lane is woken."""


@pytest.fixture
async def db(database: str) -> AsyncIterator[Database]:
    async with Database.open(database) as opened:
        yield opened


@pytest.fixture
async def intake(db: Database) -> Intake:
    owners = registered(("bot", "@b_.*"))
    await go_live(db, await announce(db, owners, epoch="test"))
    return Intake(db, owners, nobody)


def small_batches(intake: Intake, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no pass takes more rows."""
    for most in ("MAX_ROWS", "STRAIGHT_ROWS"):
        monkeypatch.setattr(intake_module, most, rows)
    intake._max_rows = rows
