"""One stage for the checks; the fixtures are those of the plugin, installed or not."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appservice_bridge.testing.bridge import Bridge
from appservice_bridge.testing.plugin import appservice_factory, matrix_user_factory
from appservice_bridge.testing.session import held
from appservice_bridge.testing.stage import StageOptions

__all__ = ["appservice_factory", "matrix_user_factory"]


@pytest.fixture(scope="package")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    options = StageOptions(
        directory=tmp_path_factory.mktemp("stage"),
        synapse_python=Path(sys.executable),
        appservices=20,
    )
    with held(options) as running:
        yield running
