"""The SQL files of this release, for whoever applies them with whatever driver."""

import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

_NUMBERED: Final = re.compile(r"(\d{4})_\w+\.sql")


def schema_directory() -> Traversable:
    """Where the SQL files lie: inside the wheel, or beside the package in a checkout."""
    packaged = files("appservice_bridge") / "schema"
    if packaged.is_dir():
        return packaged
    return Path(__file__).resolve().parents[2] / "schema"


def known_migrations() -> dict[int, Traversable]:
    """Every migration of this release by number, ascending."""
    found = {
        int(match[1]): entry
        for entry in schema_directory().iterdir()
        if (match := _NUMBERED.fullmatch(entry.name))
    }
    return dict(sorted(found.items()))


def capture_functions() -> str:
    """The script that makes or replaces the functions of the capture."""
    return (schema_directory() / "synapse" / "capture.sql").read_text(encoding="utf-8")
