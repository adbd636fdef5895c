"""The command line as a whole: every command is where the list says, and a slip is told."""

import subprocess
import sys
from importlib.metadata import version

import pytest

from appservice_bridge.cli.main import COMMANDS
from tests.cli.conftest import Run


@pytest.mark.parametrize("asked", ["-h", "--help"])
@pytest.mark.parametrize("name", [*COMMANDS, "registration new"])
def test_every_command_says_what_it_is_for(run: Run, name: str, asked: str) -> None:
    result = run(*name.split(), asked)
    assert result.exit_code == 0, result.output
    assert f"Usage: appservice-bridge {name}" in result.output or name.startswith("registration")


def test_a_flag_takes_no_value_in_the_help(run: Run) -> None:
    for words in (["discard"], ["registration", "new"], ["registration"], []):
        shown = run(*words, "--help").output
        assert "-h" in shown
        assert "<bool>" not in shown


def test_it_says_which_release_it_is(run: Run) -> None:
    result = run("--version")
    assert (result.exit_code, result.output) == (0, version("appservice-bridge") + "\n")


def test_a_name_that_is_misspelt_is_told_the_nearest(run: Run) -> None:
    result = run("stats")
    assert result.exit_code == 2
    assert "Did you mean 'status'?" in result.output


def test_a_command_reads_no_module_that_it_does_not_need() -> None:
    said = "import sys; from appservice_bridge.cli.main import app"
    said += "; app(['status', '--help'], standalone_mode=False); print('aiohttp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
