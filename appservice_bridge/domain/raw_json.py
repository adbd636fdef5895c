"""Take JSON apart without losing a byte of its parts: members and elements as they were written."""

import json
import re
from typing import Final, NoReturn, TypeVar

from appservice_bridge.domain.errors import BridgeError

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_Found = TypeVar("_Found")


class MalformedError(BridgeError):
    """The text is not the JSON it should be; trying again cannot help."""


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)


def decode(raw: bytes) -> str:
    """Text of UTF-8 bytes.

    Raises:
        MalformedError: not UTF-8.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise MalformedError("not UTF-8") from error


def members(text: str) -> dict[str, str]:
    """The members of an object, each value as it was written; of a repeated key, the last.

    Raises:
        MalformedError: not an object, or not JSON.
    """
    found: dict[str, str] = {}
    at = _opened(text, "{", "object")
    if text[at : at + 1] == "}":
        return _closed(text, at, found)
    while True:
        if text[at : at + 1] != '"':
            raise MalformedError("an object's key must be a string")
        key, at = _scan_string(text, at)
        at = _after(text, at, ":")
        end = value_end(text, at)
        found[key] = text[at:end]
        at = _skip(text, end)
        if text[at : at + 1] == "}":
            return _closed(text, at, found)
        at = _after(text, at, ",")


def elements(text: str) -> list[str]:
    """The elements of an array, each as it was written.

    Raises:
        MalformedError: not an array, or not JSON.
    """
    found: list[str] = []
    at = _opened(text, "[", "array")
    if text[at : at + 1] == "]":
        return _closed(text, at, found)
    while True:
        end = value_end(text, at)
        found.append(text[at:end])
        at = _skip(text, end)
        if text[at : at + 1] == "]":
            return _closed(text, at, found)
        at = _after(text, at, ",")


def string(text: str) -> str:
    """The string that a member's raw value stands for.

    Raises:
        MalformedError: it is not a string.
    """
    if not text.startswith('"'):
        raise MalformedError("not a string")
    return _scan_string(text, 0)[0]


def value_end(text: str, at: int) -> int:
    """Index behind the value that starts at `at`.

    Raises:
        MalformedError: there is none, or it nests too deeply.
    """
    return _scan(text, at)[1]


def _scan(text: str, at: int) -> tuple[object, int]:
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        raise MalformedError("not JSON") from error


def _scan_string(text: str, at: int) -> tuple[str, int]:
    value, end = _scan(text, at)
    return str(value), end


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
