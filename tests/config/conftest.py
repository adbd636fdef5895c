"""A bridge's directory, with an environment that says nothing."""

import os
from pathlib import Path

import pytest

from tests.config.directory import Directory


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Directory:
    for name in os.environ:
        if name.upper().startswith("APPSERVICE_BRIDGE_"):
            monkeypatch.delenv(name)
    return Directory(tmp_path)
