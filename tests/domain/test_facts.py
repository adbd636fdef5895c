"""Which facts are sound, what rows they become, and that docs/ingest.schema.json says the same."""

import json
from pathlib import Path
from typing import Any, Final

import pytest
from canonicaljson import encode_canonical_json
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from appservice_bridge.domain.facts import MAX_EVENT_BYTES, Fact, RefusedFactError, read_fact

SCHEMA: Final = Path(__file__).resolve().parents[2] / "docs" / "ingest.schema.json"
BATCH_SCHEMA: Final = json.loads(SCHEMA.read_text())
FACT_SCHEMA: Final = Draft202012Validator({"$defs": BATCH_SCHEMA["$defs"], "$ref": "#/$defs/fact"})
ABSENT: Final = object()

USER: Final = "@b_1:example.org"
DEVICE: Final = {"user_id": USER, "device_id": "DEV"}
EVENT: Final = {"event_id": "$1", "type": "m.room.message", "content": {}}
SOUND: Final[dict[str, dict[str, Any]]] = {
    "to_device": {
        "kind": "to_device",
        "to_user_id": USER,
        "to_device_id": "DEV",
        "type": "m.room_key",
        "sender": "@alice:remote.example:8448",
        "content": {"n": 1},
    },
    "device_list": {
        "kind": "device_list",
        "appservice_id": "bot",
        "changed": [USER, "@c:d"],
        "left": ["@e:f"],
    },
    "one_time_key_counts": {
        "kind": "one_time_key_counts",
        **DEVICE,
        "counts": {"signed_curve25519": 50},
    },
    "unused_fallback_key_types": {
        "kind": "unused_fallback_key_types",
        **DEVICE,
        "types": ["signed_curve25519"],
    },
    "device_deleted": {"kind": "device_deleted", **DEVICE},
    "room_event": {"kind": "room_event", "appservice_id": "bot", "event": EVENT},
    "ephemeral": {
        "kind": "ephemeral",
        "appservice_id": "bot",
        "event": {"type": "m.typing", "content": {"user_ids": []}},
    },
}
# What is put in place of a key's value, and makes the fact unsound wherever it is.
NEVER: Final[list[Any]] = [
    None, True, 1, 1.5, 2**53, "", "\0", [1], [None], ["x\0"], {"a": 1.5}, {"a\0": 1}, {"a": -1},
    {"": 1}, "x" * 256,
]  # fmt: skip
# What is sound in some places.
SOMETIMES: Final[list[Any]] = [
    ABSENT, "*", "x", "@x", "@:x", "@x:", "@x:y", "@x:y:z", "@x:[::1]:8448", "@x:y/z", "@\n:y",
    "x:y", [], ["@x:y"], ["x"], ["@x:y", 1], {}, {"a": 1}, {"a": True}, {"a": "b"},
    {"type": "x", "content": {}}, {"type": "x", "content": []},
    {"event_id": "x", "type": "x", "content": {"a": [1, None, "b"]}},
    {"event_id": 1, "type": "x", "content": {}}, {"event_id": "x", "type": "x"},
]  # fmt: skip


def read(fact: Any) -> Fact:
    return read_fact(fact, encode_canonical_json)


def refusal(fact: Any) -> str | None:
    """The errcode; None if it is sound."""
    try:
        read(fact)
    except RefusedFactError as refused:
        return refused.errcode
    return None


def with_changes(fact: dict[str, Any], **changes: Any) -> dict[str, Any]:
    changed = fact | changes
    return {key: value for key, value in changed.items() if value is not ABSENT}


VARIANTS: Final = [
    with_changes(fact, **{key: value})
    for fact in SOUND.values()
    for key in (*fact, "more")
    for value in (*NEVER, *SOMETIMES)
]


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_fact_becomes_a_row_whoever_reads_it(kind: str) -> None:
    assert FACT_SCHEMA.is_valid(SOUND[kind])
    assert read(SOUND[kind]).rows


def test_schema_and_code_agree_on_everything_that_is_put_in_place_of_a_value() -> None:
    Draft202012Validator.check_schema(BATCH_SCHEMA)
    sound = [refusal(fact) is None for fact in VARIANTS]
    assert 100 < sum(sound) < len(sound) - 100  # there is something of both
    for fact, is_sound in zip(VARIANTS, sound, strict=True):
        assert FACT_SCHEMA.is_valid(fact) is is_sound, fact


JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["@a:b", "*", "m.x", "\0", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "content", "event_id", "x"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(SOUND.values())), st.data())
def test_schema_and_code_agree_on_any_json(fact: dict[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from([*fact, "more"]))
    changed = fact | {key: data.draw(JSON)}
    assert FACT_SCHEMA.is_valid(changed) is (refusal(changed) is None), changed


@pytest.mark.parametrize(
    ("kind", "changes", "errcode"),
    [
        ("to_device", {"kind": "to_devise"}, "M_INVALID_PARAM"),
        ("to_device", {"to_user_id": "b_1"}, "M_INVALID_PARAM"),
        ("to_device", {"to_device_id": "*"}, "M_INVALID_PARAM"),
        ("to_device", {"sender": "alice"}, "M_INVALID_PARAM"),
        ("to_device", {"type": ""}, "M_INVALID_PARAM"),
        ("to_device", {"to_user_id": "@" + "é" * 126 + ":b.c"}, "M_INVALID_PARAM"),
        ("to_device", {"content": "text"}, "M_BAD_JSON"),
        ("to_device", {"content": {"x": "y" * 65_529}}, "M_TOO_LARGE"),
        ("room_event", {"event": EVENT | {"content": {"x": "y" * 65_529}}}, "M_TOO_LARGE"),
        ("room_event", {"event": EVENT | {"x": "y" * MAX_EVENT_BYTES}}, "M_TOO_LARGE"),
        ("one_time_key_counts", {"counts": {"a": -1}}, "M_BAD_JSON"),
        ("one_time_key_counts", {"counts": {"a": True}}, "M_BAD_JSON"),
        ("device_list", {"changed": ["@a:b", "c"]}, "M_INVALID_PARAM"),
        ("device_list", {"changed": ["@a:b"] * 10_001}, "M_TOO_LARGE"),
        ("unused_fallback_key_types", {"types": ABSENT}, "M_BAD_JSON"),
    ],
)
def test_a_fault_is_named(kind: str, changes: dict[str, Any], errcode: str) -> None:
    assert refusal(with_changes(SOUND[kind], **changes)) == errcode


def test_a_message_says_which_key_and_never_what_is_in_it() -> None:
    messages = " ".join(message for fact in VARIANTS if (message := said_of(fact)))
    assert "to_user_id" in messages
    for value in ("example.org", "DEV", "m.room", "xxxx"):
        assert value not in messages


def said_of(fact: Any) -> str:
    try:
        read(fact)
    except RefusedFactError as refused:
        return refused.message
    return ""


def test_what_a_device_list_says_twice_is_said_once_and_changed_wins() -> None:
    fact = SOUND["device_list"] | {"changed": ["@a:b", "@a:b", "@c:d"], "left": ["@c:d", "@e:f"]}
    rows = [(row.user_id, row.body) for row in read(fact).rows]
    assert sorted(rows) == [("@a:b", b"changed"), ("@c:d", b"changed"), ("@e:f", b"left")]


def test_that_no_keys_are_left_is_kept_as_it_was_said() -> None:
    (row,) = read(SOUND["one_time_key_counts"] | {"counts": {}}).rows
    assert json.loads(row.body) == {"one_time_key_counts": {}}
    (row,) = read(SOUND["unused_fallback_key_types"] | {"types": []}).rows
    assert json.loads(row.body) == {"unused_fallback_key_types": []}


def test_the_row_of_a_message_is_canonical_json() -> None:
    fact = SOUND["to_device"] | {"content": {"b": 1, "a": "é\u2028\x7f"}, "more": 1}
    (row,) = read(fact).rows
    kept = {key: fact[key] for key in ("type", "sender", "content")}
    assert row.body == encode_canonical_json(kept)
    assert (row.user_id, row.device_id, row.appservice_id) == (USER, "DEV", None)
