"""Taking JSON apart gives back exactly what was written, and never raises anything unforeseen."""

import json
import time
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from appservice_bridge.domain import raw_json
from appservice_bridge.domain.raw_json import (
    MAX_DEPTH,
    MalformedError,
    decode,
    elements,
    likeness,
    members,
    value_end,
)
from tests.support.properties import UNHURRIED

SPACES: Final = st.text(alphabet=" \t\n\r", max_size=3)
ESCAPES: Final = st.sampled_from(
    [r"\u0000", r"\ud800", r"\udfff", r"\ud83d\ude00", r"\"", r"\\", r"\/", r"\n", r"\u007F"]
)
PLAIN: Final = st.characters(exclude_categories=["Cs"], exclude_characters='"\\').filter(
    lambda character: character >= " "
)

STRINGS: Final = st.lists(ESCAPES | PLAIN, max_size=8).map(lambda parts: f'"{"".join(parts)}"')
NUMBERS: Final = st.sampled_from(
    ["0", "-0", "1.10", "1e400", "-1E-400", "1E+2", "0.0", str(2**53), str(2**70), "9" * 5000]
) | st.integers().map(str)
SCALARS: Final = STRINGS | NUMBERS | st.sampled_from(["true", "false", "null"])


@st.composite
def arrays(draw: st.DrawFn, inner: "st.SearchStrategy[str]") -> str:
    parts = [draw(SPACES) + one + draw(SPACES) for one in draw(st.lists(inner, max_size=4))]
    return f"[{','.join(parts) or draw(SPACES)}]"


@st.composite
def objects(draw: st.DrawFn, inner: "st.SearchStrategy[str]") -> str:
    parts = [
        f"{draw(SPACES)}{draw(STRINGS)}{draw(SPACES)}:{draw(SPACES)}{one}{draw(SPACES)}"
        for one in draw(st.lists(inner, max_size=4))
    ]
    return f"{{{','.join(parts) or draw(SPACES)}}}"


VALUES: Final = st.recursive(SCALARS, lambda inner: arrays(inner) | objects(inner), max_leaves=12)


@UNHURRIED
@given(st.lists(st.tuples(STRINGS, VALUES)), st.data())
def test_every_member_comes_back_byte_for_byte_and_of_a_repeated_key_the_last(
    pairs: list[tuple[str, str]], data: st.DataObject
) -> None:
    parts, expected = [], {}
    for key, value in pairs:
        before, behind, colon, after = (data.draw(SPACES) for _ in range(4))
        parts.append(f"{before}{key}{behind}:{colon}{value}{after}")
        expected[json.loads(key)] = value
    outside = data.draw(SPACES)
    assert members(f"{outside}{{{','.join(parts)}}}{outside}") == expected


@UNHURRIED
@given(st.lists(VALUES), st.data())
def test_every_element_comes_back_byte_for_byte(values: list[str], data: st.DataObject) -> None:
    parts = [f"{data.draw(SPACES)}{value}{data.draw(SPACES)}" for value in values]
    outside = data.draw(SPACES)
    assert elements(f"{outside}[{','.join(parts)}]{outside}", most=1000) == values


@pytest.mark.parametrize("number", ["1.10", "1e400", "-0.0", str(2**70), "9" * 5000])
def test_a_number_is_neither_rounded_nor_refused_for_its_size(number: str) -> None:
    assert members(f'{{"n":{number}}}') == {"n": number}


@pytest.mark.parametrize("escape", [r"\ud800", r"\udfff\ud800", r"\u0000"])
def test_escapes_that_no_text_column_takes_pass(escape: str) -> None:
    raw = f'{{"body":"{escape}"}}'
    assert elements(f"[{raw}]", most=1) == [raw]
    assert raw_json.string(f'"{escape}"') == json.loads(f'"{escape}"')


def test_an_escaped_key_is_the_same_key() -> None:
    assert members(r'{"\u0065vents":[1]}') == {"events": "[1]"}


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "01",
        "1.",
        ".5",
        "+1",
        "'a'",
        '"\t"',
        '"\\x"',
        '"\\u12"',
        "tru",
    ],
)
def test_what_is_no_json_value_is_refused_wherever_it_stands(text: str) -> None:
    for whole in (f'{{"a":{text}}}', f'{{"a":[{{"b":{text}}}]}}'):
        with pytest.raises(MalformedError):
            members(whole)
    with pytest.raises(MalformedError):
        elements(f"[1,{text}]", most=9)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "{",
        "[",
        "{}{}",
        "{},",
        '{"a"}',
        '{"a":}',
        '{"a":1,}',
        "{1:2}",
        '{"a":1 "b":2}',
        "\ufeff{}",
    ],
)
def test_a_broken_object_is_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        members(text)


@pytest.mark.parametrize(
    "text", ["", "[", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "[1]x", "{}", "null"]
)
def test_a_broken_array_is_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        elements(text, most=100)


@UNHURRIED
@given(
    st.text()
    | st.text(alphabet='{}[]",:\\u0d8 1.e-ntrfal')
    | st.recursive(st.text(max_size=3), lambda inner: inner.map("[{}".format), max_leaves=30)
)
@example('{"a":' * 100_000)
@example("[" * 100_000)
@example("[" * 100_000 + "]" * 99_999)
def test_garbage_raises_malformed_and_nothing_else(text: str) -> None:
    for take_apart in (members, _few, raw_json.string, _members_at_any_depth, _first_value):
        try:
            take_apart(text)
        except MalformedError:
            continue


@UNHURRIED
@given(st.binary())
@example(b"\xed\xa0\x80")
@example(b"\xff{}")
@example(b"\xc0\xaf")
def test_bytes_decode_as_utf_8_or_are_malformed(raw: bytes) -> None:
    try:
        text = decode(raw)
    except MalformedError:
        with pytest.raises(UnicodeDecodeError):
            raw.decode()
    else:
        assert text.encode() == raw


@UNHURRIED
@given(st.recursive(st.none() | st.booleans() | st.text(), lambda inner: st.lists(inner)))
def test_what_the_standard_library_writes_is_read(value: Any) -> None:
    for ascii_only in (True, False):
        text = json.dumps({"v": value}, ensure_ascii=ascii_only, indent=1)
        assert json.loads(members(text)["v"]) == value


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_an_item_may_nest_so_deep_and_no_deeper(opening: str) -> None:
    closing = "]" if opening == "[" else "}"

    def nested(depth: int) -> str:
        return f'{{"v":{opening * (depth - 1)}0{closing * (depth - 1)}}}'

    allowed = nested(MAX_DEPTH)
    assert members(allowed) == {"v": allowed[5:-1]}
    for depth in (MAX_DEPTH + 1, 5_000, 90_000):
        with pytest.raises(MalformedError, match="deep"):
            members(nested(depth))


def test_what_nests_too_deeply_costs_nothing_but_itself() -> None:
    deep = "[" * 50_000 + '"]}[{\\""' + "]" * 50_000
    body = f'{{"events":[{{"a":1}},{{"deep":{deep}}},{{"b":2}}],"ephemeral":[]}}'
    found = members(body, any_depth=True)
    assert found["ephemeral"] == "[]"
    first, second, third = elements(found["events"], most=3)
    assert (first, third) == ('{"a":1}', '{"b":2}')
    with pytest.raises(MalformedError, match="deep"):
        members(second)


def test_brackets_inside_strings_do_not_count_as_depth() -> None:
    text = '{"v":"' + "[" * 5_000 + '"}'
    assert members(text) == {"v": text[5:-1]}


def test_a_million_brackets_that_never_close_are_refused_at_once() -> None:
    text = '{"events":' + "[" * 20_000_000
    began = time.process_time()
    with pytest.raises(MalformedError):
        members(text, any_depth=True)
    assert time.process_time() - began < 1.5


@UNHURRIED
@given(VALUES, st.sampled_from(["", ",", "]", "}", " ", "\n:"]))
def test_a_value_ends_where_it_was_written_to_end(value: str, behind: str) -> None:
    assert value_end(f"[{value}{behind}", 1) == 1 + len(value)


def _few(text: str) -> object:
    return elements(text, most=1000)


def _members_at_any_depth(text: str) -> object:
    return members(text, any_depth=True)


def _first_value(text: str) -> object:
    return value_end(text, 0)


def test_more_elements_than_are_wanted_are_not_even_read() -> None:
    with pytest.raises(MalformedError, match="more than 3 elements"):
        elements("[0,0,0,0,then rubbish", most=3)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a":1,"b":[true,null]}', ' { "b" : [true , null], "a": 1 } '),
        ('"\\u00fc"', '"ü"'),
        ('{"a":{"y":1,"x":2}}', '{"a":{"x":2,"y":1}}'),
    ],
)
def test_what_says_the_same_is_alike(one: str, other: str) -> None:
    assert likeness(one) == likeness(other)


def test_what_says_something_else_is_not_alike_and_nothing_is_too_odd_to_compare() -> None:
    odd = [
        "[1,2]",
        "[2,1]",
        '"1"',
        "1",
        "true",
        "{",
        "[" * 5000,
        "[1" + "0" * 5000 + "]",
        '"\\ud800"',
    ]
    assert len({likeness(one) for one in odd}) == len(odd)
