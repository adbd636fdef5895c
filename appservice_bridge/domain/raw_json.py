"""Take JSON apart without losing a byte of its parts: members and elements as they were written."""

import json
import re
from collections.abc import Iterator
from typing import Final, NoReturn, TypeVar

from appservice_bridge.domain.errors import BridgeError

MAX_DEPTH: Final = 800
"""Objects and arrays inside each other, in one item: CPython's own reader ends below 1000."""

MAX_CONTENT_BYTES: Final = 65_536
"""Of a content, in canonical JSON."""

_DEEPEST_WALK: Final = 100_000  # more than fits any event; it ends the walk through `[[[[…`
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_STRING_OR_BRACKET: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)
_Found = TypeVar("_Found")


class MalformedError(BridgeError):
    """The text is not the JSON it should be; trying again cannot help."""


class TooManyError(MalformedError):
    """An array has more elements than its reader takes."""


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedError(f"{name} is not JSON")


# Numbers are only looked at, so none is too long or too large.
_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=str, parse_float=str)
_NAN_DECODER: Final = json.JSONDecoder(parse_constant=str, parse_int=str, parse_float=str)


def decode(raw: bytes) -> str:
    """Text of UTF-8 bytes.

    Raises:
        MalformedError: not UTF-8.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise MalformedError("not UTF-8") from error


def members(text: str, *, any_depth: bool = False, nan: bool = False) -> dict[str, str]:
    """The members of an object, each value as it was written; of a repeated key, the last.

    With `any_depth` what nests too deeply is only stepped over, so that the other items in a
    body can be read; whoever takes it apart further must ask again without. With `nan` NaN and
    the infinities are stepped over, too, which are no JSON.

    Raises:
        MalformedError: not an object, or not JSON, or deeper than `MAX_DEPTH`.
    """
    if not any_depth:
        require_shallow(text)
    found: dict[str, str] = {}
    at = _opened(text, "{", "object")
    if text[at : at + 1] == "}":
        return _closed(text, at, found)
    while True:
        if text[at : at + 1] != '"':
            raise MalformedError("an object's key must be a string")
        key, at = _scan_string(text, at)
        at = _after(text, at, ":")
        end = value_end(text, at, any_depth=any_depth, nan=nan)
        found[key] = text[at:end]
        at = _skip(text, end)
        if text[at : at + 1] == "}":
            return _closed(text, at, found)
        at = _after(text, at, ",")


def elements(text: str, *, most: int, nan: bool = False) -> list[str]:
    """The elements of an array, each as it was written; those that nest too deeply, too.

    Raises:
        MalformedError: not an array, or not JSON.
        TooManyError: of more elements than `most`.
    """
    found: list[str] = []
    at = _opened(text, "[", "array")
    if text[at : at + 1] == "]":
        return _closed(text, at, found)
    while True:
        if len(found) == most:
            raise TooManyError(f"more than {most} elements")
        end = value_end(text, at, any_depth=True, nan=nan)
        found.append(text[at:end])
        at = _skip(text, end)
        if text[at : at + 1] == "]":
            return _closed(text, at, found)
        at = _after(text, at, ",")


def require_small(content: str) -> None:
    """Refuse a content that no homeserver should have accepted.

    Raises:
        MalformedError: its canonical JSON takes more than `MAX_CONTENT_BYTES`.
    """
    if len(content.encode(errors="surrogatepass")) <= MAX_CONTENT_BYTES:
        return  # canonical JSON is the shortest there is
    try:
        value = json.loads(content)
    except ValueError:  # a number of thousands of digits
        raise MalformedError("a number too long to read") from None
    compact = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if len(compact.encode(errors="surrogatepass")) > MAX_CONTENT_BYTES:
        raise MalformedError(f"content of more than {MAX_CONTENT_BYTES} bytes")


def likeness(text: str) -> str:
    """The same text for all JSON that says the same, however it is written.

    Of what Python's reader cannot hold, and of what is no JSON, it is the text as it is.
    """
    try:
        return json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    except (ValueError, RecursionError):
        return text


def string(text: str) -> str:
    """The string that a member's raw value stands for.

    Raises:
        MalformedError: it is not a string.
    """
    if not text.startswith('"'):
        raise MalformedError("not a string")
    return _scan_string(text, 0)[0]


def value_end(text: str, at: int, *, any_depth: bool = False, nan: bool = False) -> int:
    """Index behind the value that starts at `at`.

    With `any_depth` of a value too deep for the reader only the brackets are counted.

    Raises:
        MalformedError: there is none, or it nests too deeply.
    """
    try:
        return _scan(text, at, _NAN_DECODER if nan else _DECODER)[1]
    except RecursionError:
        if any_depth:
            for index, depth in _brackets(text, at):
                if depth == 0:
                    return index
        raise MalformedError("nests too deeply") from None


def _scan(text: str, at: int, decoder: json.JSONDecoder = _DECODER) -> tuple[object, int]:
    try:
        return decoder.raw_decode(text, at)
    except ValueError as error:
        raise MalformedError("not JSON") from error


def _scan_string(text: str, at: int) -> tuple[str, int]:
    value, end = _scan(text, at)
    return str(value), end


def _brackets(text: str, at: int) -> Iterator[tuple[int, int]]:
    """Behind every bracket outside of strings: the index, and how many are open."""
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text, at):
        if not match[0].startswith('"'):
            depth += 1 if match[0] in "[{" else -1
            yield match.end(), depth
        if not 0 <= depth < _DEEPEST_WALK:
            return


def require_shallow(text: str) -> None:
    """See that an item can be taken apart and put together again.

    Raises:
        MalformedError: deeper than `MAX_DEPTH`.
    """
    if len(text) <= 2 * MAX_DEPTH or text.count("[") + text.count("{") <= MAX_DEPTH:
        return  # it cannot be, if it is JSON
    if any(depth > MAX_DEPTH for _, depth in _brackets(text, 0)):
        raise MalformedError("nests too deeply")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _opened(text: str, bracket: str, kind: str) -> int:
    at = _skip(text, 0)
    if text[at : at + 1] != bracket:
        raise MalformedError(f"not an {kind}")
    return _skip(text, at + 1)


def _after(text: str, at: int, mark: str) -> int:
    at = _skip(text, at)
    if text[at : at + 1] != mark:
        raise MalformedError("not JSON")
    return _skip(text, at + 1)


def _closed(text: str, at: int, found: _Found) -> _Found:
    if _skip(text, at + 1) != len(text):
        raise MalformedError("more behind the JSON")
    return found
