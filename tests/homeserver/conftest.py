"""One Synapse for all tests of this directory; its appservices are known from the start."""

from collections.abc import AsyncIterator, Iterator
from itertools import count
from typing import Final

import aiohttp
import pytest

from tests.support.homeserver import Client, Homeserver, homeserver, postgres_on_disk, registered

ODD_ID: Final = "bridge of rooms/ä?%#1"
SMALL_TRANSACTIONS: Final = {"appservices": {ODD_ID: {"max_items": 3}}}
numbers = count(1)


@pytest.fixture(scope="session")
def synapse_python(pytestconfig: pytest.Config) -> str:
    """The Python of the Synapse to test with."""
    return str(pytestconfig.getoption("synapse_python"))


@pytest.fixture(scope="package")
def synapse(synapse_python: str, pytestconfig: pytest.Config) -> Iterator[Homeserver]:
    """Synapse, Postgres and the bridge; which appservice is for what, its name says."""
    appservices = [
        registered("lab", users=["@lab_.*"]),
        registered("load", users=["@load_.*"]),
        registered("shared_a", users=["@shared_.*"], exclusive=False),
        registered("shared_b", users=["@shared_.*"], exclusive=False),
        registered("others", users=["@others_.*"]),
        registered("quiet", users=["@quiet_.*"]),  # nobody of it is in any room
        registered("sender_only"),
        registered("nullurl", users=["@.*"], exclusive=False, listens=False),
        registered(
            ODD_ID,
            users=["@odd_.*"],
            sender_localpart="rooms_bot",
            as_token="as_odd",
            hs_token="hs_odd",
        ),
    ]
    with (
        postgres_on_disk(pytestconfig.getoption("postgres_binaries")) as server,
        homeserver(
            server, appservices, config=SMALL_TRANSACTIONS, python=synapse_python
        ) as running,
    ):
        yield running


@pytest.fixture
async def client(synapse: Homeserver) -> AsyncIterator[Client]:
    """Speaks to the homeserver."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        yield Client(of=synapse, http=http)


@pytest.fixture
def fresh() -> str:
    """Part of a localpart that no other test uses."""
    return f"t{next(numbers)}"
