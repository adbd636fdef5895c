"""The pytest plugin: fixtures that start a real homeserver with the bridge.

Loaded into every pytest run of an environment that has the package, so it imports nothing heavy
before a fixture is asked for.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from appservice_bridge.testing.factories import AppserviceFactory, MatrixUserFactory

if TYPE_CHECKING:
    from appservice_bridge.testing.appservice import Appservice
    from appservice_bridge.testing.bridge import Bridge
    from appservice_bridge.testing.matrix_user import MatrixUser
    from appservice_bridge.testing.stage import StageOptions
    from appservice_bridge.testing.stand import Handler

ENV_VARIABLE: Final = "APPSERVICE_BRIDGE_ENV"
PYTHON_VARIABLE: Final = "APPSERVICE_BRIDGE_SYNAPSE_PYTHON"


def pytest_addoption(parser: pytest.Parser) -> None:
    """What a project may say in its pytest configuration."""
    parser.addini(
        "appservice_bridge_registrations",
        type="paths",
        default=[],
        help="registration files of your bots, known to the homeserver from the start",
    )
    parser.addini(
        "appservice_bridge_server_name",
        default="test.localhost",
        help="the part of user ids behind the colon",
    )
    parser.addini(
        "appservice_bridge_appservices",
        default="32",
        help="how many unnamed appservices are made at once; more cost a restart of Synapse",
    )
    parser.addini(
        "appservice_bridge_synapse_python",
        default="",
        help=f"a Python that has matrix-synapse and psycopg2, instead of a private environment "
        f"(or ${PYTHON_VARIABLE})",
    )


@pytest.fixture(scope="session")
def bridge(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> "Iterator[Bridge]":
    """Postgres, Synapse and the bridge; with xdist each worker has its own."""
    from appservice_bridge.testing.session import held

    directory = tmp_path_factory.mktemp("appservice-bridge")
    with held(_options(pytestconfig, directory)) as running:
        before = os.environ.get(ENV_VARIABLE)
        os.environ[ENV_VARIABLE] = str(running.env_file)
        yield running
        os.environ.pop(ENV_VARIABLE, None)
        if before is not None:
            os.environ[ENV_VARIABLE] = before
    for name in ("postgres", "synapse/media"):
        shutil.rmtree(directory / name, ignore_errors=True)  # the logs stay


@pytest.fixture(scope="session")
def bridge_env(bridge: "Bridge") -> Path:
    """`env.json`, for bots and tests that are no Python or have no event loop."""
    return bridge.env_file


@pytest.fixture
def appservice_factory(bridge: "Bridge") -> Iterator[AppserviceFactory]:
    """An appservice of this test alone: `appservice_factory(bot=None, *, registration=None)`."""
    made: list[Appservice] = []

    def make(
        bot: "str | Handler | None" = None, *, registration: "Path | str | None" = None
    ) -> "Appservice":
        made.append(bridge.appservice(bot, registration=registration))
        return made[-1]

    yield make
    for appservice in made:
        bridge.give_back(appservice)


@pytest.fixture
def matrix_user_factory(bridge: "Bridge") -> Iterator[MatrixUserFactory]:
    """Makes people, each with an encrypted client; its argument begins their names."""
    made: list[MatrixUser] = []

    async def make(name: str = "user") -> "MatrixUser":
        made.append(await bridge.user(name))
        return made[-1]

    yield make
    for user in made:
        bridge.run(bridge.leave(user))


def _options(config: pytest.Config, directory: Path) -> "StageOptions":
    from appservice_bridge.testing.stage import StageOptions

    return StageOptions(
        directory=directory,
        synapse_python=_synapse_python(config),
        server_name=config.getini("appservice_bridge_server_name"),
        declared=tuple(config.getini("appservice_bridge_registrations")),
        appservices=int(config.getini("appservice_bridge_appservices")),
    )


def _synapse_python(config: pytest.Config) -> Path:
    from appservice_bridge.testing.synapse_environment import SynapseEnvironment, user_cache

    named = os.environ.get(PYTHON_VARIABLE) or config.getini("appservice_bridge_synapse_python")
    if named:
        return Path(named)
    return SynapseEnvironment(cache=user_cache()).ensure(lambda text: _say(config, text))


def _say(config: pytest.Config, text: str) -> None:
    """A line on the terminal in the midst of a test's setup, whatever is captured."""
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        print(f"\nappservice-bridge: {text}", file=sys.stderr, flush=True)
        return
    with capture.global_and_fixture_disabled():
        print(f"\nappservice-bridge: {text}", file=sys.stderr, flush=True)
