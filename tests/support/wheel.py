"""The package as pip installs it."""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).resolve().parents[2]


def built(target: str, directory: Path, source: Path = PROJECT) -> Path:
    """The file that hatchling makes, without a network."""
    code = f"from hatchling.build import build_{target} as build; print(build({str(directory)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, check=True, capture_output=True, text=True
    )
    return directory / done.stdout.split()[-1]


def unpacked_wheel(directory: Path) -> Path:
    """What `pip install --no-deps` leaves in an environment, made from this checkout."""
    with zipfile.ZipFile(built("wheel", directory)) as wheel:
        wheel.extractall(directory / "installed")
    return directory / "installed"
