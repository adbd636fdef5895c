"""An interpreter that has Synapse and our package, and nothing of what else we depend on."""

import os
from pathlib import Path
from typing import Final

# What the package depends on and Synapse does not.
OURS: Final = (
    "aiohttp", "asyncpg", "nio", "orjson", "psutil", "pydantic_settings", "rich", "structlog",
    "typer", "uvloop", "vodozemac",
)  # fmt: skip
HOOK: Final = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OURS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def synapse_environment(directory: Path, wheel: Path) -> dict[str, str]:
    """The environment of a process in which our dependencies cannot be imported."""
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(HOOK)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return kept | {"PYTHONPATH": f"{directory}:{wheel}"}
