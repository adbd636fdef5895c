"""A config and its registrations are sound together, or every fault is named at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from appservice_bridge.config.faults import ConfigError
from appservice_bridge.config.loading import load
from tests.config.directory import MINIMAL, Directory, registration


def test_a_minimal_config_is_sound_and_has_no_warnings(directory: Directory) -> None:
    loaded = directory.load()
    assert [registration.id for registration in loaded.registrations] == ["my-bot"]
    assert loaded.warnings == ()
    assert "SECRET" not in repr(loaded)


def test_faults_of_file_environment_and_registrations_come_all_at_once(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.write("registrations/broken.yaml", "id: [")
    directory.write("registrations/poor.yaml", "id: my-bot\n")
    directory.config("""\
database: postgresql://bridge@localhost/synapse
homeserver: {knid: synapse}
registrations: [registrations/*.yaml, gone/*.yaml]
appservices: {other: {max_items: 0}, my-bot: {transport: http}}
delivery: {max_items: 1}
delivery: {max_items: 0}
""")
    directory.register(url=None)
    monkeypatch.setenv("APPSERVICE_BRIDGE_LISTEN__RELAY", "nowhere")
    places = {" ".join(fault.split()[:2]) for fault in directory.faults()}
    assert places == {
        "config.yaml:6: delivery",  # given twice
        "config.yaml:2: homeserver.server_name",
        "config.yaml:2: homeserver.knid",
        "environment: APPSERVICE_BRIDGE_LISTEN__RELAY:",
        "config.yaml:6: delivery.max_items",
        "config.yaml:4: appservices.other.max_items",
        "config.yaml:4: appservices.other",  # has no registration
        "config.yaml:3: gone/*.yaml",
        "registrations/broken.yaml:1: not",  # YAML
        "registrations/poor.yaml: as_token",
        "registrations/poor.yaml: hs_token",
        "registrations/poor.yaml: sender_localpart",
        "registrations/poor.yaml: namespaces",
        "registrations/poor.yaml:1: id",  # is the same
        "registrations/my-bot.yaml:2: appservices.my-bot.transport",
    }


@pytest.mark.parametrize("key", ["id", "as_token", "hs_token"])
def test_an_id_or_token_of_another_file_is_refused_naming_both(
    directory: Directory, key: str
) -> None:
    directory.register(id="a", as_token="SECRET-1", hs_token="SECRET-2")
    same = {"id": "a", "as_token": "SECRET-1", "hs_token": "SECRET-2"}[key]
    apart = {"id": "b", "as_token": "SECRET-3", "hs_token": "SECRET-4"}
    directory.register("other.yaml", **(apart | {key: same}))
    line = {"id": 1, "as_token": 3, "hs_token": 4}[key]
    assert directory.faults() == [
        (
            f"registrations/other.yaml:{line}: {key} is the same as in"
            f" registrations/my-bot.yaml:{line}; make it unique"
        )
    ]


def test_the_order_of_files_and_patterns_makes_no_difference(directory: Directory) -> None:
    directory.register("other.yaml", id="other", as_token="SECRET-3", hs_token="SECRET-4")
    found = []
    for patterns in ("['registrations/o*', 'registrations/m*']", "['registrations/*', '*/m*']"):
        directory.add(f"registrations: {patterns}")
        found.append([registration.id for registration in directory.load().registrations])
    assert found == [["my-bot", "other"]] * 2


def test_a_pattern_may_be_absolute_or_the_very_name_of_a_file(directory: Directory) -> None:
    file = directory.write("odd [1].yaml", registration())
    directory.add(f"registrations: ['odd [1].yaml', '{file.parent}/registrations/../odd*']")
    assert len(directory.load().registrations) == 1


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        ("[registrations/*.yaml]", "[]"),
        ("[gone/*, lost/*]", "[]"),
        ("[registrations/*.yaml, other/*]", '["other/*"]'),
    ],
)
def test_where_the_last_file_of_a_pattern_went_the_line_to_write_is_named(
    directory: Directory, patterns: str, left: str
) -> None:
    directory.write("other/bot.yaml", registration())
    (directory.path / "registrations" / "my-bot.yaml").unlink()
    directory.add(f"registrations: {patterns}")
    line = f"registrations: {left}"
    told = directory.faults()
    assert told
    assert all(fault.endswith(f"are to be gone, write `{line}`") for fault in told)
    directory.add(line)
    assert len(directory.load().registrations) == (left != "[]")


def test_a_pattern_that_matches_a_directory_is_a_fault(directory: Directory) -> None:
    directory.add("registrations: [registrations]")
    assert directory.faults() == ["registrations: is a directory, not a file"]


def test_a_pattern_that_matches_a_fifo_is_a_fault_and_nobody_waits(directory: Directory) -> None:
    fifo = directory.path / "registrations" / "pipe.yaml"
    os.mkfifo(fifo)
    check = [sys.executable, "-m", "appservice_bridge", "check", "--config"]
    done = subprocess.run(
        [*check, str(directory.config_file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, "pipe.yaml: is a FIFO, not a file" in done.stderr) == (1, True)


@pytest.mark.parametrize("pattern", ["a\\0b", "x" * 5000])
def test_a_pattern_that_can_name_no_file_is_a_fault(directory: Directory, pattern: str) -> None:
    directory.add(f'registrations: ["{pattern}"]')
    assert directory.faults()


def test_without_registrations_there_is_a_warning(directory: Directory) -> None:
    directory.add("registrations: []")
    assert directory.warnings() == [
        "config.yaml:4: no registrations: nothing is delivered to anyone"
    ]


def test_an_appservice_that_nobody_registered_is_refused_with_the_nearest_id(
    directory: Directory,
) -> None:
    directory.add("appservices:\n  my_bot: {}")
    assert directory.faults() == [
        "config.yaml:5: appservices.my_bot has no registration; did you mean my-bot?"
    ]


@pytest.mark.parametrize(
    ("relay", "url"),
    [
        ("127.0.0.1:9009", "http://127.0.0.1:9009/appservice/my-bot"),
        ("127.0.0.1:9009", "http://localhost:9009"),
        ("0.0.0.0:9009", "http://[::1]:9009/x"),
        ("0.0.0.0:9009", "http://bridge:9009/appservice/my-bot"),
        ("Bridge:80", "http://bRIDGE/"),
        ("bridge:443", "https://bridge"),
    ],
)
def test_a_registration_that_points_at_the_relay_is_refused(
    directory: Directory, relay: str, url: str
) -> None:
    directory.register(url=url)
    directory.add(f"listen: {{relay: '{relay}'}}")
    (fault,) = directory.faults()
    assert fault.startswith("registrations/my-bot.yaml:2: url points at the bridge itself")


@pytest.mark.parametrize(
    ("relay", "url"),
    [
        ("127.0.0.1:9009", "http://127.0.0.1:9008"),
        ("127.0.0.1:9009", "http://bot:9009"),
        ("0.0.0.0:9009", "http://bot:9009/appservice/other"),
    ],
)
def test_an_appservice_beside_the_relay_is_no_loop(
    directory: Directory, relay: str, url: str
) -> None:
    directory.register(url=url)
    directory.add(f"listen: {{relay: '{relay}'}}")
    assert directory.load()


@pytest.mark.parametrize("url", [None, "websocket"])
def test_the_http_transport_needs_a_url(directory: Directory, url: str | None) -> None:
    directory.register(url=url)
    directory.add("appservices: {my-bot: {transport: http}}")
    assert directory.faults() == [
        "registrations/my-bot.yaml:2: appservices.my-bot.transport is http, which needs an http url"
    ]


def test_encryption_that_the_registration_refuses_and_the_config_wants_is_a_warning(
    directory: Directory,
) -> None:
    directory.add("appservices: {my-bot: {encryption: on}}")
    assert directory.warnings() == []
    directory.write("registrations/my-bot.yaml", registration() + "org.matrix.msc3202: false")
    assert directory.warnings() == [
        (
            "registrations/my-bot.yaml:10: org.matrix.msc3202 is false,"
            " but appservices.my-bot.encryption is on; the config decides"
        )
    ]


def test_several_database_hosts_make_a_warning_of_what_a_failover_voids(
    directory: Directory,
) -> None:
    directory.config(MINIMAL.replace("localhost", "a,b"))
    voided, attributes = directory.warnings()
    assert "without a synchronous standby a failover voids: nothing is lost" in voided
    assert attributes.endswith("add target_session_attrs=primary")
    directory.config(MINIMAL.replace("localhost/synapse", "a,b/s?target_session_attrs=primary"))
    assert len(directory.warnings()) == 1


def test_a_refusal_brings_the_warnings_along(directory: Directory) -> None:
    directory.register(fancy=1)
    directory.add("delivery: {max_items: 0}")
    with pytest.raises(ConfigError) as refused:
        directory.load()
    assert [warning.reason for warning in refused.value.warnings] == ["fancy is not a known key"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty"),
        (b"- a", "must be a mapping"),
        (b"a: [", "not YAML"),
        (b"\xff", "is not UTF-8"),
    ],
)
def test_a_config_that_is_no_yaml_mapping_is_one_fault(
    directory: Directory, content: bytes, fault: str
) -> None:
    directory.config_file.write_bytes(content)
    (found,) = directory.faults()
    assert fault in found


def test_a_config_that_is_not_there_is_one_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone.yaml: no such file$"):
        load(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match=r": is a directory, not a file$"):
        load(tmp_path)
