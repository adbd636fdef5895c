"""A to-device message, taken apart the quick way where it is written as Synapse writes it."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from appservice_bridge.domain import to_device
from appservice_bridge.domain.raw_json import MAX_CONTENT_BYTES, MAX_DEPTH, MalformedError
from appservice_bridge.domain.to_device import to_device_item

PLAIN = b'{"content":{"a":"b","c":{"d":[1,2.50]}},"type":"m.t","sender":"@a:b"}'
PIECES = (*'{}[]",:\\ ', '"content":', '"type":"x"', "NaN", "1e5", "\x00", "\ud7ff", '},"type":')
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def either_way(message: bytes) -> tuple[object, object]:
    """What it becomes, and what it becomes when it is taken apart the long way."""
    found: list[object] = []
    quick = to_device.is_as_synapse_writes_it
    for way in (quick, lambda _: False):
        to_device.is_as_synapse_writes_it = way
        try:
            found.append(to_device_item("@u:b", 'D"1', message))
        except MalformedError:
            found.append("malformed")
        finally:
            to_device.is_as_synapse_writes_it = quick
    return found[0], found[1]


@given(
    content=st.dictionaries(st.text(max_size=5), VALUES, max_size=4),
    names=st.tuples(st.text(max_size=8), st.text(max_size=8)),
    ascii_only=st.booleans(),
)
def test_what_synapse_writes_becomes_the_same_either_way(
    content: dict[str, object], names: tuple[str, str], ascii_only: bool
) -> None:
    message = {"content": content, "type": names[0], "sender": names[1]}
    written = json.dumps(message, ensure_ascii=ascii_only, separators=(",", ":"))
    quick, long = either_way(written.encode())
    assert quick == long
    assert isinstance(quick, bytes)
    read = json.loads(quick)
    assert (read["content"], read["type"], read["sender"]) == (content, *names)


@given(
    place=st.integers(0, len(PLAIN)),
    cut=st.integers(0, 4),
    piece=st.sampled_from(PIECES) | st.text(max_size=3),
)
@example(place=11, cut=0, piece='"a":1},"content":{')
@example(place=len(PLAIN) - 30, cut=0, piece=',"extra":{}')
def test_what_is_broken_anywhere_is_judged_the_same_either_way(
    place: int, cut: int, piece: str
) -> None:
    quick, long = either_way(PLAIN[:place] + piece.encode() + PLAIN[place + cut :])
    assert quick == long


def test_the_quick_way_is_taken() -> None:
    assert to_device.is_as_synapse_writes_it(PLAIN)


@pytest.mark.parametrize(
    "content",
    [
        b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
        b'{"a":"' + b"x" * MAX_CONTENT_BYTES + b'"}',
        b'{"a":NaN}',
        b'{"a":1}{"b":2}',
    ],
)
def test_the_quick_way_is_as_strict(content: bytes) -> None:
    with pytest.raises(MalformedError):
        to_device_item("@u:b", "D", b'{"content":%s,"type":"t","sender":"s"}' % content)
