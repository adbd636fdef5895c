"""The files of deploy/ agree with each other and with the program; no engine runs them here."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from typer.testing import CliRunner

from appservice_bridge.cli.generations import START_SECONDS, STOP_SECONDS
from appservice_bridge.cli.main import COMMANDS, app
from appservice_bridge.config.environment import CONFIG_VARIABLE
from tests.support.bridge import registration, write_files
from tests.support.guide import CONFIGURATION, PROGRAM, REPOSITORY

UNITS: Final = REPOSITORY / "deploy" / "systemd"
DOCKER: Final = REPOSITORY / "deploy" / "docker"
UNIT: Final = UNITS / "appservice-bridge.service"
TEMPLATE: Final = UNITS / "appservice-bridge@.service"


def settings(unit: Path) -> dict[str, list[str]]:
    """What a unit says, by name; a name may stand there more than once."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text("utf-8").splitlines():
        if not line.startswith(("#", "[")) and line:
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
    return document


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, with continued lines joined."""
    text = (DOCKER / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_units_differ_only_in_what_tells_workers_apart() -> None:
    one, several = settings(UNIT), settings(TEMPLATE)
    apart = {"Description", "EnvironmentFile", "DefaultInstance"}
    kept = [{k: v for k, v in unit.items() if k not in apart} for unit in (one, several)]
    assert kept[0] == kept[1]
    assert several["EnvironmentFile"] == [f"{CONFIGURATION}/worker-%i.env"]


def test_the_ports_of_a_worker_are_set_by_the_variables_that_the_template_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = re.findall(r"^#     (\w+)=(\S+)$", TEMPLATE.read_text("utf-8"), re.MULTILINE)
    for name, value in named:
        monkeypatch.setenv(name, value)
    files = write_files(
        tmp_path, "postgresql://bridge@localhost/synapse", [registration("b", "http://127.0.0.1:9")]
    )
    listen = files.load().config.listen
    assert [str(listen.relay), str(listen.admin)] == [value for _, value in named]


@pytest.mark.parametrize("unit", [UNIT, TEMPLATE])
def test_a_unit_starts_a_command_that_there_is_and_waits_as_long_as_it_may_take(unit: Path) -> None:
    said = settings(unit)
    program, command, *options = shlex.split(said["ExecStart"][0])
    assert (program, command) == (PROGRAM, "run")
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
    assert all(option in shown for option in options if option.startswith("--"))
    assert said["Type"] == ["notify"]
    assert float(said["TimeoutStartSec"][0]) > START_SECONDS
    assert float(said["TimeoutStopSec"][0]) > STOP_SECONDS


@pytest.mark.parametrize("unit", [UNIT, TEMPLATE])
def test_systemd_finds_nothing_wrong_with_a_unit(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    copy = tmp_path / unit.name  # whose program is there
    copy.write_text(unit.read_text("utf-8").replace(PROGRAM, "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy).replace("@.", "@1.")],
        capture_output=True,
        text=True,
        check=False,
    )
    about_it = [line for line in done.stderr.splitlines() if "appservice-bridge" in line]
    assert about_it == []  # it also looks at units that this one names


def test_the_image_is_made_of_files_that_are_there_and_let_in() -> None:
    let_in = (REPOSITORY / ".dockerignore").read_text("utf-8").splitlines()
    wanted = [line[1:] for line in let_in if line.startswith("!")]
    project = (REPOSITORY / "pyproject.toml").read_text("utf-8")
    needed = {"appservice_bridge", "schema", "README.md", "LICENSE", "pyproject.toml"}
    assert needed | {"requirements.txt"} == set(wanted)
    assert all((REPOSITORY / name).exists() for name in wanted)
    assert 'readme = "README.md"' in project
    assert let_in[0] == "*"


def test_the_image_runs_the_worker_as_nobody_in_particular() -> None:
    said = instructions()
    assert ("USER", "990") in said
    assert ("ENTRYPOINT", '["appservice-bridge"]') in said
    [variables] = [value for name, value in said if name == "ENV"]
    assert f"{CONFIG_VARIABLE}={CONFIGURATION}/bridge.yaml" in variables
    [command] = [value for name, value in said if name == "CMD"]
    assert yaml.safe_load(command)[0] in COMMANDS


def test_the_compose_file_prepares_before_it_runs_and_gives_a_stop_its_time() -> None:
    services = compose()["services"]
    bridge, prepare = services["bridge"], services["prepare"]
    named = re.findall(r"appservice-bridge (\S+)", prepare["entrypoint"][-1])
    assert named == ["migrate", "install"]
    first, _, _ = (DOCKER / "compose.yaml").read_text("utf-8").partition("\nname:")
    said = [line.split(" bridge ")[-1] for line in first.splitlines() if "--no-deps" in line]
    assert said == ["check", "install --print-grants"]
    assert bridge["depends_on"] == {"prepare": {"condition": "service_completed_successfully"}}
    assert float(bridge["stop_grace_period"].removesuffix("s")) > STOP_SECONDS
    for service in (bridge, prepare):
        assert service["volumes"] == [f"./config:{CONFIGURATION}:ro"]
        build = service["build"]
        assert (DOCKER / build["context"]).resolve() == REPOSITORY
        assert (REPOSITORY / build["dockerfile"]).is_file()
