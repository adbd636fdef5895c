"""`registration` writes new registrations and the homeserver's copies."""

import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import Result

from appservice_bridge.config.registrations import load_registration
from tests.cli.conftest import Run
from tests.config.directory import MINIMAL, Directory, registration

RELAY = ("--relay", "http://bridge:9009")


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "bot.yaml"
    path.write_text(registration(**{"org.matrix.msc3202": True, "fancy": 1}))
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def printed(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    keys: dict[str, Any] = yaml.safe_load(result.stdout)
    return keys


def test_a_new_registration_is_what_an_encrypted_bot_needs(run: Run) -> None:
    keys = printed(run("registration", "new", "My Bot"))
    assert (keys["id"], keys["sender_localpart"]) == ("My Bot", "my-bot")
    assert keys["url"] == "http://127.0.0.1:29300"
    assert keys["namespaces"] == {"users": [], "aliases": [], "rooms": []}
    assert keys["org.matrix.msc3202"] is True
    assert keys["receive_ephemeral"] is keys["de.sorunome.msc2409.push_ephemeral"] is False


@pytest.mark.parametrize("words", [("new", "bot"), ("for-homeserver", "bot.yaml", *RELAY)])
def test_a_dash_is_stdout(run: Run, original: Path, words: tuple[str, ...]) -> None:
    result = run("registration", *words, "-o", "-")
    assert printed(result)["id"]
    assert not Path("-").exists()


def test_a_new_registration_says_what_was_asked_for(run: Run) -> None:
    users = ("--user", "@a_.*", "--user", "@b_.*", "--shared-user", "@c_.*")
    where = ("--url", "http://h:1", "--sender-localpart", "x", "--ephemeral")
    keys = printed(run("registration", "new", "a/b: \u00fc", *users, *where))
    assert (keys["id"], keys["url"], keys["sender_localpart"]) == ("a/b: \u00fc", "http://h:1", "x")
    assert keys["namespaces"]["users"] == [
        {"exclusive": True, "regex": "@a_.*"},
        {"exclusive": True, "regex": "@b_.*"},
        {"exclusive": False, "regex": "@c_.*"},
    ]
    assert keys["receive_ephemeral"] is keys["de.sorunome.msc2409.push_ephemeral"] is True


def test_a_new_registration_may_have_no_url(run: Run) -> None:
    assert printed(run("registration", "new", "bot", "--url", "null"))["url"] is None


def test_tokens_are_fresh_each_time(run: Run) -> None:
    made = [printed(run("registration", "new", "bot")) for _ in range(2)]
    tokens = {keys[name] for keys in made for name in ("as_token", "hs_token")}
    assert len(tokens) == 4
    assert min(map(len, tokens)) >= 43


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("bot", "--user", "("),
        ("bot", "--url", "ftp://x"),
        ("bot", "--sender", "@bot:example.org"),
        ("",),
        ("..",),
    ],
)
def test_a_registration_that_would_be_refused_is_bad_usage(
    run: Run, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    result = run("registration", "new", "-o", "bot.yaml", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert not (tmp_path / "bot.yaml").exists()


def test_a_new_file_is_for_its_owner_alone_and_is_sound(run: Run, tmp_path: Path) -> None:
    result = run("registration", "new", "bot", "-o", "bot.yaml")
    assert (result.exit_code, result.stdout) == (0, "")
    assert mode(tmp_path / "bot.yaml") == 0o600
    written = load_registration(tmp_path / "bot.yaml")
    assert written.id == "bot"
    assert written.as_token not in result.output


def test_a_new_registration_overwrites_only_when_forced(run: Run, original: Path) -> None:
    before = original.read_text()
    original.chmod(0o644)
    refused = run("registration", "new", "bot", "-o", "bot.yaml")
    assert refused.exit_code == 1
    assert refused.stderr.startswith("bot.yaml: exists already")
    assert original.read_text() == before
    assert run("registration", "new", "bot", "-o", "bot.yaml", "--force").exit_code == 0
    assert load_registration(original).id == "bot"
    assert mode(original) == 0o600


def test_a_file_that_cannot_be_written_is_one_line(run: Run, tmp_path: Path) -> None:
    result = run("registration", "new", "bot", "-o", "gone/bot.yaml")
    assert result.exit_code == 1
    assert result.stderr == "gone/bot.yaml: cannot be written: No such file or directory\n"


def test_the_homeservers_copy_differs_in_url_and_native_encryption_only(
    run: Run, original: Path
) -> None:
    keys = printed(run("registration", "for-homeserver", "bot.yaml", *RELAY))
    assert keys == yaml.safe_load(original.read_text()) | {
        "url": "http://bridge:9009/appservice/my-bot",
        "org.matrix.msc3202": False,
    }


def test_the_id_is_percent_encoded_and_the_relay_may_have_a_path(run: Run, original: Path) -> None:
    original.write_text(registration(id="a/b ?\u00fc"))
    keys = printed(run("registration", "for-homeserver", "bot.yaml", "--relay", "https://h/x/"))
    assert keys["url"] == "https://h/x/appservice/a%2Fb%20%3F%C3%BC"
    assert keys["id"] == "a/b ?\u00fc"


@pytest.mark.parametrize("url", [None, "websocket"])
def test_the_homeserver_sends_to_the_relay_even_where_the_appservice_has_no_http_url(
    run: Run, original: Path, url: str | None
) -> None:
    original.write_text(registration(url=url))
    keys = printed(run("registration", "for-homeserver", "bot.yaml", *RELAY))
    assert keys["url"] == "http://bridge:9009/appservice/my-bot"


def test_the_relay_may_come_from_the_config(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Directory(tmp_path).add("listen: {relay: 'bridge:7'}")
    command = ("registration", "for-homeserver", "registrations/my-bot.yaml")
    expected = "http://bridge:7/appservice/my-bot"
    assert printed(run(*command, "--config", "config.yaml"))["url"] == expected
    monkeypatch.setenv("APPSERVICE_BRIDGE_CONFIG", "config.yaml")
    assert printed(run(*command))["url"] == expected
    assert printed(run(*command, *RELAY))["url"].startswith("http://bridge:9009/")


def test_what_is_wrong_with_other_registrations_does_not_stop_a_copy(
    run: Run, tmp_path: Path
) -> None:
    directory = Directory(tmp_path)
    directory.register("good.yaml", fancy=1)
    directory.register("bad.yaml", id="bad", url="ftp://x")
    result = run(
        *("registration", "for-homeserver", "registrations/good.yaml", "--config", "config.yaml")
    )
    assert printed(result)["url"].endswith("/appservice/my-bot")
    [warning] = result.stderr.splitlines()
    assert "fancy" in warning


def test_a_relay_that_listens_everywhere_has_no_address_to_send_to(
    run: Run, tmp_path: Path
) -> None:
    Directory(tmp_path).add("listen: {relay: '0.0.0.0:9009'}")
    result = run(
        "registration", "for-homeserver", "registrations/my-bot.yaml", "--config", "config.yaml"
    )
    assert (result.exit_code, result.stdout) == (1, "")
    assert "give --relay URL" in result.stderr


def test_a_copy_for_an_appservice_that_gets_nothing_is_made_with_a_warning(
    run: Run, tmp_path: Path
) -> None:
    Directory(tmp_path).register(url=None)
    result = run(
        "registration", "for-homeserver", "registrations/my-bot.yaml", "--config", "config.yaml"
    )
    assert result.exit_code == 0
    assert "warning: nothing is delivered to my-bot" in result.stderr


@pytest.mark.parametrize(
    "arguments", [(), ("--relay", "bridge:9009"), ("--relay", "http://u:SECRET@h")]
)
def test_without_a_usable_relay_the_usage_is_bad(
    run: Run, original: Path, arguments: tuple[str, ...]
) -> None:
    result = run("registration", "for-homeserver", "bot.yaml", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "SECRET" not in result.stderr


def test_a_faulty_original_or_config_is_refused_with_every_fault(
    run: Run, tmp_path: Path, original: Path
) -> None:
    (tmp_path / "config.yaml").write_text(MINIMAL + "delivery: {max_items: 0}")
    result = run("registration", "for-homeserver", "bot.yaml", "--config", "config.yaml")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[1].startswith("config.yaml:4: delivery.max_items")
    original.write_text(registration(url="ftp://x", id=5))
    result = run("registration", "for-homeserver", "bot.yaml", *RELAY)
    assert (result.exit_code, result.stdout) == (1, "")
    assert [line.split()[0] for line in result.stderr.splitlines()] == [
        "bot.yaml:1:",
        "bot.yaml:2:",
    ]
    assert run("registration", "for-homeserver", "gone.yaml", *RELAY).exit_code == 1


def test_a_copy_is_for_its_owner_alone_and_an_earlier_one_keeps_its_mode(
    run: Run, tmp_path: Path, original: Path
) -> None:
    command = ("registration", "for-homeserver", "bot.yaml", "-o", "copy.yaml")
    copy = tmp_path / "copy.yaml"
    assert run(*command, "--relay", "http://much-longer-than-later:9009").exit_code == 0
    assert mode(copy) == 0o600
    copy.chmod(0o640)
    assert run(*command, "--relay", "http://b").exit_code == 0
    assert load_registration(copy).url == "http://b/appservice/my-bot"
    assert mode(copy) == 0o640


def test_a_copy_overwrites_another_file_only_when_forced(
    run: Run, tmp_path: Path, original: Path
) -> None:
    command = ("registration", "for-homeserver", "bot.yaml", *RELAY, "-o", "homeserver.yaml")
    (tmp_path / "homeserver.yaml").write_text("server_name: example.org")
    assert run(*command).exit_code == 1
    assert (tmp_path / "homeserver.yaml").read_text() == "server_name: example.org"
    assert run(*command, "--force").exit_code == 0


def test_a_copy_never_overwrites_the_original(run: Run, tmp_path: Path, original: Path) -> None:
    before = original.read_text()
    (tmp_path / "link.yaml").symlink_to(original)
    for output in ("bot.yaml", "./bot.yaml", "link.yaml"):
        command = ("registration", "for-homeserver", "bot.yaml", *RELAY, "--force", "-o", output)
        assert run(*command).exit_code == 1
    assert original.read_text() == before


def test_a_device_may_take_the_output(run: Run, original: Path) -> None:
    command = ("registration", "for-homeserver", "bot.yaml", *RELAY, "-o", "/dev/null")
    assert run(*command).exit_code == 0
    assert Path("/dev/null").is_char_device()
