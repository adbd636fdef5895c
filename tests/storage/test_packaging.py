"""The schema and the dashboard travel with the package, whichever way it is installed."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Final

import pytest

from appservice_bridge.blueprint.files import schema_directory
from tests.support.wheel import PROJECT, built

FILES: Final = sorted(
    path.relative_to(PROJECT / "schema").as_posix()
    for path in (PROJECT / "schema").rglob("*")
    if path.is_file()
)
WHERE: Final = (
    "from appservice_bridge.blueprint.files import known_migrations, schema_directory;"
    "print(schema_directory()); print(*known_migrations())"
)


def asked(cwd: Path, *path: Path) -> list[str]:
    """What a fresh interpreter finds, in another directory."""
    environment = {"PYTHONPATH": ":".join(map(str, path))}
    done = subprocess.run(
        [sys.executable, "-c", WHERE],
        cwd=cwd,
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def unpacked_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that was built from the sdist, as a package index hands it out."""
    directory = tmp_path_factory.mktemp("dist")
    with tarfile.open(built("sdist", directory)) as sdist:
        sdist.extractall(directory / "source", filter="data")
    (source,) = (directory / "source").iterdir()
    with zipfile.ZipFile(built("wheel", directory, source)) as wheel:
        wheel.extractall(directory / "installed")
    return directory / "installed"


def test_a_wheel_holds_every_file_of_the_schema(unpacked_wheel: Path) -> None:
    inside = unpacked_wheel / "appservice_bridge" / "schema"
    assert FILES
    for name in FILES:
        assert (inside / name).read_bytes() == (PROJECT / "schema" / name).read_bytes()


def test_a_wheel_holds_every_file_of_the_dashboard_and_the_licence_of_what_is_not_ours(
    unpacked_wheel: Path,
) -> None:
    page = Path("appservice_bridge") / "http" / "dashboard" / "page"
    names = [each.relative_to(PROJECT) for each in (PROJECT / page).rglob("*") if each.is_file()]
    assert page / "index.html" in names
    assert page / "vendor" / "uplot" / "LICENSE" in names
    for name in names:
        assert (unpacked_wheel / name).read_bytes() == (PROJECT / name).read_bytes()


def test_what_a_wheel_installed_finds_its_own_schema(unpacked_wheel: Path, tmp_path: Path) -> None:
    directory, numbers = asked(tmp_path, unpacked_wheel)
    assert Path(directory) == unpacked_wheel / "appservice_bridge" / "schema"
    assert numbers.split()[0] == "1"


def test_an_editable_install_finds_the_schema_of_the_checkout(tmp_path: Path) -> None:
    directory, _ = asked(tmp_path)
    assert Path(directory) == PROJECT / "schema"
    assert Path(str(schema_directory())) == PROJECT / "schema"
