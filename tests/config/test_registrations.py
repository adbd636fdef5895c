"""What a registration file may say, and how each fault is named."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appservice_bridge.config.faults import ConfigError
from appservice_bridge.config.registrations import load_registration, read_registration
from tests.config.directory import ABSENT, registration

SAMPLE = Path(__file__).parents[2] / "sample_registration.yaml"


def faults(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        load_registration(path)
    return [str(fault).replace(f"{path.parent}/", "") for fault in refused.value.faults]


def written(directory: Path, content: str | bytes) -> Path:
    path = directory / "bot.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def changed(directory: Path, **changes: Any) -> Path:
    return written(directory, registration(**changes))


def test_every_key_of_the_specification_is_read(tmp_path: Path) -> None:
    space = {"exclusive": False, "regex": "x"}
    path = changed(
        tmp_path,
        rate_limited=False,
        protocols=["irc"],
        namespaces={"users": [{"exclusive": True, "regex": "@a"}], "aliases": [space], "rooms": []},
        **{"org.matrix.msc3202": True},
    )
    read = load_registration(path)
    assert (read.id, read.url, read.sender_localpart) == (
        "my-bot",
        "http://127.0.0.1:29300",
        "mybot",
    )
    assert (read.as_token, read.hs_token) == ("SECRET-as", "SECRET-hs")
    assert [(space.regex, space.exclusive) for space in read.users] == [("@a", True)]
    assert [(space.regex, space.exclusive) for space in read.aliases] == [("x", False)]
    assert (read.rooms, read.protocols, read.rate_limited) == ((), ("irc",), False)
    assert (read.encryption, read.source) == (True, str(path))


def test_the_sample_is_sound_and_warns_only_of_its_public_tokens() -> None:
    reading = read_registration(SAMPLE)
    assert reading.registration is not None
    assert reading.registration.encryption is True
    assert [warning.reason.split(";")[0] for warning in reading.warnings] == [
        "as_token is the sample's, which everybody knows",
        "hs_token is the sample's, which everybody knows",
    ]


@pytest.mark.parametrize("url", [None, ABSENT])
def test_a_url_may_be_null_or_absent(tmp_path: Path, url: object) -> None:
    assert load_registration(changed(tmp_path, url=url)).url is None


def test_a_url_may_be_the_word_websocket(tmp_path: Path) -> None:
    assert load_registration(changed(tmp_path, url="websocket")).url == "websocket"


def test_a_trailing_slash_of_the_url_goes(tmp_path: Path) -> None:
    path = changed(tmp_path, url="https://bot.example.org/base/")
    assert load_registration(path).url == "https://bot.example.org/base"


@pytest.mark.parametrize(
    "key", ["receive_ephemeral", "de.sorunome.msc2409.push_ephemeral", "push_ephemeral"]
)
def test_each_of_three_keys_asks_for_ephemeral_events(tmp_path: Path, key: str) -> None:
    assert load_registration(changed(tmp_path, **{key: True})).receive_ephemeral
    assert not load_registration(changed(tmp_path, **{key: False})).receive_ephemeral


def test_silence_about_encryption_is_no_refusal(tmp_path: Path) -> None:
    assert load_registration(changed(tmp_path)).encryption is None
    refusing = changed(tmp_path, **{"org.matrix.msc3202": False})
    assert load_registration(refusing).encryption is False


@pytest.mark.parametrize("name", ["a/b", "a b", "ü%2F", "|", "null", "#", "\U0001f600", "a\nb"])
def test_an_id_may_hold_any_character(tmp_path: Path, name: str) -> None:
    assert load_registration(changed(tmp_path, id=name)).id == name


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"id": ABSENT}, "bot.yaml: id is missing"),
        ({"hs_token": ABSENT}, "bot.yaml: hs_token is missing"),
        ({"namespaces": ABSENT}, "bot.yaml: namespaces is missing"),
        ({"id": 5}, "bot.yaml:1: id must be text; put it in quotes"),
        ({"id": ""}, "bot.yaml:1: id must not be empty"),
        ({"id": "a\0"}, "bot.yaml:1: id must not hold U+0000"),
        ({"id": ".."}, "bot.yaml:1: id must not be . or .., because"),
        ({"url": "ftp://x"}, "bot.yaml:2: url must be like http://"),
        ({"url": ""}, "bot.yaml:2: url must not be empty; write null"),
        ({"url": "http://"}, "bot.yaml:2: url must be like http://"),
        ({"url": "http://u:SECRET@h"}, "bot.yaml:2: url must not hold a user name"),
        ({"url": "http://SECRET@\u2100"}, "bot.yaml:2: url cannot be read as a URL"),
        ({"url": "http://h/?a=SECRET"}, "bot.yaml:2: url must end with its path"),
        ({"url": "http://h:99999"}, "bot.yaml:2: url has a port that is not"),
        ({"as_token": ""}, "bot.yaml:3: as_token must not be empty"),
        ({"as_token": "SECRET\0"}, "bot.yaml:3: as_token must not hold spaces or control"),
        ({"hs_token": "SECRET\r\nX: y"}, "bot.yaml:4: hs_token must not hold spaces or control"),
        ({"hs_token": ["SECRET"]}, "bot.yaml:4: hs_token must be text"),
        ({"sender_localpart": "@a:b"}, "bot.yaml:5: sender_localpart must be a localpart"),
        ({"namespaces": []}, "bot.yaml:6: namespaces must be a mapping"),
        ({"namespaces": {"users": None}}, "bot.yaml:7: namespaces.users must be a list"),
        (
            {"namespaces": {"users": [{"exclusive": True, "regex": "("}]}},
            "bot.yaml:9: namespaces.users.0.regex is not a valid regex: missing )",
        ),
        (
            {"namespaces": {"rooms": [{"exclusive": "yes", "regex": "x"}]}},
            "bot.yaml:8: namespaces.rooms.0.exclusive must be true or false",
        ),
        (
            {"namespaces": {"users": [{"regex": "@a"}]}},
            "bot.yaml:8: namespaces.users.0.exclusive is missing",
        ),
        ({"rate_limited": "no"}, "bot.yaml:10: rate_limited must be true or false"),
        ({"protocols": "irc"}, "bot.yaml:10: protocols must be a list"),
        ({"io.element.msc4190": 1}, "bot.yaml:10: io.element.msc4190 must be true or false"),
    ],
)
def test_a_fault_names_its_line_and_says_what_is_wanted(
    tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    found = faults(changed(tmp_path, **changes))
    assert found[0].startswith(fault), found
    assert "SECRET" not in "".join(found)


def test_all_faults_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    found = faults(changed(tmp_path, id=5, url="ftp://x", hs_token=ABSENT))
    assert [fault.split()[1] for fault in found] == ["id", "url", "hs_token"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "bot.yaml: is empty"),
        ("# nothing\n", "bot.yaml: is empty"),
        ("- id: a", "bot.yaml:1: must be a mapping"),
        ("id:a", "bot.yaml:1: must be a mapping"),
        ("id: a\nas_token: *SECRET", "bot.yaml:2: not YAML: found undefined alias; quote text"),
        ("id: a\nas_token: !SECRET", "bot.yaml:2: not YAML: could not determine a constructor"),
        ("id: a\nas_token: !SECRET x", "bot.yaml:2: not YAML: could not determine a constructor"),
        ("id: a\nas_token: '", "bot.yaml:2: not YAML: while scanning a quoted scalar"),
        ("id: a\n b: c", "bot.yaml:2: not YAML: mapping values are not allowed here"),
        ("id: a\n---\nid: b", "bot.yaml:2: not YAML: expected a single document"),
        ("id: a\nas_token: \x07", "bot.yaml:2: not YAML: the character U+0007 is not allowed"),
        ("id: 2024-99-99", "bot.yaml: a date or number cannot be read"),
        ("a: " + "[" * 1500, "bot.yaml: not usable: nested too deeply"),
        ("? [a]\n: b", "bot.yaml:1: not YAML: while constructing a mapping: found unhashable key"),
        (b"id: \xff", "bot.yaml: is not UTF-8 text: byte 4"),
        (b'id: "\\ud800"\nas_token: a', "bot.yaml:1: id must not hold a lone surrogate"),
    ],
)
def test_a_file_that_is_no_registration_is_one_fault_and_no_traceback(
    tmp_path: Path, content: str | bytes, fault: str
) -> None:
    first = faults(written(tmp_path, content))[0]
    assert first.startswith(fault), first
    assert "SECRET" not in first
    assert "\n" not in first


def test_a_file_that_cannot_be_read_is_one_fault(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    assert faults(tmp_path / "gone") == ["gone: no such file"]
    assert faults(tmp_path / "dir") == ["dir: is a directory, not a file"]
    assert faults(tmp_path / "loop") == ["loop: cannot be read: Too many levels of symbolic links"]


@pytest.fixture
def nobody() -> Iterator[None]:
    """For root may read every file."""
    before = os.geteuid()
    os.seteuid(65_534 if before == 0 else before)
    yield
    os.seteuid(before)


def test_a_file_that_may_not_be_read_is_one_fault(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = changed(tmp_path)
    path.chmod(0)
    request.getfixturevalue("nobody")
    assert faults(path) == ["bot.yaml: may not be read: permission denied"]


def test_a_key_given_twice_is_a_fault_and_names_both_lines(tmp_path: Path) -> None:
    assert faults(written(tmp_path, registration() + "id: other\n")) == [
        "bot.yaml:10: id is given twice, first on line 1; keep one"
    ]


def test_a_key_given_twice_is_found_at_any_depth(tmp_path: Path) -> None:
    text = registration(namespaces={}) + "x:\n- {a: 1, a: 2}\n"
    assert faults(written(tmp_path, text))[0].startswith("bot.yaml:8: a is given twice")


def warnings(path: Path) -> list[str]:
    return [str(each).replace(f"{path.parent}/", "") for each in read_registration(path).warnings]


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        (
            {"org.matrix.mcs3202": True},
            "bot.yaml:10: org.matrix.mcs3202 is not a known key; did you mean org.matrix.msc3202?",
        ),
        ({"zzz": [{}]}, "bot.yaml:10: zzz is not a known key"),
        ({"id": "a|b"}, "bot.yaml:1: Synapse does not start with an id that holds |"),
        ({"hs_token": "SECRET-as"}, "bot.yaml:4: hs_token should differ from as_token"),
        (
            {"namespaces": {"user": []}},
            "bot.yaml:7: namespaces.user is not a known key; did you mean users?",
        ),
        (
            {"namespaces": {"users": [{"exclusive": True, "regex": "bot_.*"}]}},
            "bot.yaml:9: namespaces.users.0.regex never matches: users begin with @",
        ),
    ],
)
def test_what_is_allowed_but_hardly_meant_is_a_warning(
    tmp_path: Path, changes: dict[str, Any], warning: str
) -> None:
    path = changed(tmp_path, **changes)
    assert load_registration(path)
    assert warnings(path) == [warning]


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    assert load_registration(written(tmp_path, b"\xef\xbb\xbf" + registration().encode()))


def test_no_repr_shows_a_token(tmp_path: Path) -> None:
    assert "SECRET" not in repr(read_registration(changed(tmp_path)))
