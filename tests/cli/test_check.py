"""`check` says whether config and registrations are sound."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.config.directory import MINIMAL, Directory, registration


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(tmp_path)


def test_a_sound_config_is_one_line_and_exit_0(run: Run, directory: Directory) -> None:
    result = run("check", "--config", "config.yaml")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == "config.yaml: sound, 1 registration: my-bot"


def test_the_releases_of_synapse_and_postgres_that_it_works_with_are_named(
    run: Run, directory: Directory
) -> None:
    result = run("check", "--config", "config.yaml")
    assert result.stdout.splitlines()[1:] == [
        "works with Synapse 1.143.0 to 1.163.2 on Postgres 14 to 18"
    ]
    directory.config(MINIMAL + "  kind: generic\n")
    generic = run("check", "--config", "config.yaml")
    assert generic.stdout.splitlines()[1:] == ["works with Postgres 14 to 18"]
    of_its_own = MINIMAL.replace("postgresql://bridge@localhost/synapse", "embedded")
    directory.config(of_its_own + "  kind: generic\n")
    assert len(run("check", "--config", "config.yaml").stdout.splitlines()) == 1


def test_every_fault_is_a_line_on_stderr_and_exit_1(run: Run, directory: Directory) -> None:
    directory.register("other.yaml", id="other", fancy=1)
    directory.add("delivery: {max_items: 0, profil: both}")
    result = run("check", "--config", "config.yaml")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        "config.yaml:4: delivery.max_items must be greater than or equal to 1",
        "config.yaml:4: delivery.profil is not a known key; did you mean profile?",
        (
            "registrations/other.yaml:3: as_token is the same as in"
            " registrations/my-bot.yaml:3; make it unique"
        ),
        (
            "registrations/other.yaml:4: hs_token is the same as in"
            " registrations/my-bot.yaml:4; make it unique"
        ),
        "registrations/other.yaml:10: warning: fancy is not a known key",
    ]


def test_faults_come_file_by_file_from_the_top_down(run: Run, directory: Directory) -> None:
    directory.register("a.yaml", url="ftp://x")
    directory.config("listen: {relay: no}\nnonsense: 1\nappservices: {gone: {}}\n" + MINIMAL)
    result = run("check", "--config", "config.yaml")
    places = [line.split(": ")[0] for line in result.stderr.splitlines()]
    assert places[:4] == [*(f"config.yaml:{line}" for line in (1, 2, 3)), "registrations/a.yaml:2"]


def test_warnings_are_shown_and_leave_exit_0(run: Run, directory: Directory) -> None:
    directory.register(fancy=1)
    result = run("check", "--config", "config.yaml")
    assert result.exit_code == 0
    assert result.stderr == "registrations/my-bot.yaml:10: warning: fancy is not a known key\n"


def test_json_lists_faults_and_warnings_with_a_version(run: Run, directory: Directory) -> None:
    directory.register(url="ftp://x")
    directory.register("other.yaml", fancy=1, id="other", as_token="SECRET-1", hs_token="SECRET-2")
    result = run("check", "--config", "config.yaml", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "version": 1,
        "faults": [
            {
                "file": "registrations/my-bot.yaml",
                "line": 2,
                "reason": "url must be like http://127.0.0.1:29300, with scheme http or https",
            }
        ],
        "warnings": [
            {
                "file": "registrations/other.yaml",
                "line": 10,
                "reason": "fancy is not a known key",
            }
        ],
    }
    assert "SECRET" not in result.output


def test_json_of_a_sound_config_is_empty_lists_and_exit_0(run: Run, directory: Directory) -> None:
    result = run("check", "--config", "config.yaml", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"version": 1, "faults": [], "warnings": []}


def test_the_config_may_be_named_by_the_environment(
    run: Run, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPSERVICE_BRIDGE_CONFIG", "config.yaml")
    assert run("check").exit_code == 0


def test_without_a_config_the_usage_is_bad(run: Run) -> None:
    result = run("check")
    assert result.exit_code == 2
    assert "APPSERVICE_BRIDGE_CONFIG" in result.stderr


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b"\xff", "is not UTF-8 text: byte 0 cannot be decoded"),
        (b"a: [", "not YAML: while parsing a flow node: expected the node content, but found"),
    ],
)
def test_a_config_that_cannot_be_read_is_one_line_and_no_traceback(
    run: Run, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_bytes(content)
    result = run("check", "--config", "config.yaml")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    assert line.startswith("config.yaml")
    assert reason in line


def test_no_token_is_ever_shown(run: Run, directory: Directory) -> None:
    directory.write("token", "SECRET-ops\nSECRET")
    directory.config(
        MINIMAL.replace("bridge@", "bridge:SECRET@")
        + """
database_password_file: token
admin: {tokens: [{name: a, role: root, token_file: token}]}
appservices: {my-bot: {max_items: 0}}
"""
    )
    directory.register(as_token="SECRET a", hs_token=["SECRET"], url="http://SECRET@h")
    directory.write("registrations/b.yaml", registration() + "id: x\nas_token: SECRET-as\n")
    directory.write("registrations/c.yaml", registration(id="c"))
    directory.write("registrations/d.yaml", "hs_token: *SECRET\n")
    for flags in ((), ("--json",)):
        result = run("check", "--config", "config.yaml", *flags)
        assert result.exit_code == 1
        assert "SECRET" not in result.output
