"""The homeserver of these tests is the release that was asked for."""

import subprocess
from typing import Final

import aiohttp
import pytest

from appservice_bridge.domain.supported import (
    NEWEST_SCHEMA_VERSION,
    NEWEST_SYNAPSE,
    OLDEST_SCHEMA_VERSION,
    OLDEST_SYNAPSE,
)
from tests.support.homeserver import Homeserver

ENDS: Final = {
    OLDEST_SYNAPSE: OLDEST_SCHEMA_VERSION,
    NEWEST_SYNAPSE: NEWEST_SCHEMA_VERSION,
}
ASK: Final = "from importlib.metadata import version; print(version('matrix-synapse'))"


@pytest.fixture
def release(synapse_python: str) -> str:
    command = [synapse_python, "-c", ASK]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


async def test_it_is_an_end_of_the_range_that_is_supported_with_that_end_s_schema(
    synapse: Homeserver, release: str
) -> None:
    url = f"{synapse.url}/_matrix/federation/v1/version"
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        assert (await response.json())["server"]["version"].split()[0] == release
    assert synapse.rows("select version from schema_version") == [(ENDS[release],)]
