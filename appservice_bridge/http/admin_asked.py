"""What a request at the admin port asks for, read strictly: what is not understood is refused."""

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from aiohttp import web

MOST_LISTED: Final = 500
_LISTED: Final = 100
_FIRST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_POSITION: Final = re.compile(r"([0-9]{1,17})-([0-9a-f]{32})")


class NotUnderstoodError(Exception):
    """A request that is refused before anything is done; answer it so.

    Attributes:
        status: 400, or 404 for what cannot be there.
        errcode: M_NOT_JSON, M_BAD_JSON, M_INVALID_PARAM or M_NOT_FOUND.
        reason: what would be right; quotes nothing of the request.
    """

    def __init__(self, errcode: str, reason: str, *, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status
        self.errcode = errcode
        self.reason = reason


def appservice_id(request: web.Request) -> str:
    """The id in the path; of one that Postgres cannot hold it is said that it is not there.

    Raises:
        NotUnderstoodError: as it says.
    """
    given = request.match_info["appservice_id"]
    if not is_text(given):
        raise NotUnderstoodError("M_NOT_FOUND", "no appservice has such an id", status=404)
    return given


def limit(request: web.Request) -> int:
    """How many to list; 100 where nothing is said, 500 at most.

    Raises:
        NotUnderstoodError: it is no such number.
    """
    return number(request, "limit", least=1, most=MOST_LISTED, default=_LISTED)


def number(request: web.Request, name: str, *, least: int, most: int, default: int) -> int:
    """A whole number in the query.

    Raises:
        NotUnderstoodError: it is none, or out of bounds.
    """
    given = request.query.get(name)
    if given is None:
        return default
    if not (given.isascii() and given.isdigit() and len(given) < 20):
        raise NotUnderstoodError("M_INVALID_PARAM", f"{name} must be a whole number")
    if not least <= int(given) <= most:
        raise NotUnderstoodError("M_INVALID_PARAM", f"{name} must be {least} to {most}")
    return int(given)


def position(request: web.Request, name: str) -> tuple[datetime, UUID]:
    """Where a page of dead letters begins, as `as_position` said; without it, before the newest.

    Raises:
        NotUnderstoodError: nobody said that.
    """
    given = request.query.get(name)
    if given is None:
        return datetime.max.replace(tzinfo=UTC), UUID(int=2**128 - 1)
    match = _POSITION.fullmatch(given)
    if match is None:
        raise NotUnderstoodError("M_INVALID_PARAM", f"{name} must come from the page before")
    return _FIRST + timedelta(microseconds=int(match[1])), UUID(match[2])


def as_position(buried_at: datetime, dead_letter_id: UUID) -> str:
    """What leads to the page behind a dead letter."""
    return f"{(buried_at - _FIRST) // timedelta(microseconds=1)}-{dead_letter_id.hex}"


def text(request: web.Request, name: str) -> str | None:
    """A text in the query.

    Raises:
        NotUnderstoodError: Postgres could not hold it.
    """
    given = request.query.get(name)
    if given is not None and not is_text(given):
        raise NotUnderstoodError("M_INVALID_PARAM", f"{name} must be plain text")
    return given


async def members(request: web.Request, *known: str) -> dict[str, Any]:
    """The body's members, none of which is unknown; an empty body has none.

    Raises:
        NotUnderstoodError: it is something else.
        HTTPRequestEntityTooLarge: it is larger than any answer to it could need.
    """
    body = await request.read()
    if not body:
        return {}
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise NotUnderstoodError("M_NOT_JSON", "the body must be JSON") from None
    if not isinstance(found, dict):
        raise NotUnderstoodError("M_BAD_JSON", "the body must be an object")
    if unknown := found.keys() - set(known):
        names = ", ".join(known) or "none"
        raise NotUnderstoodError("M_BAD_JSON", f"{len(unknown)} unknown members; known: {names}")
    return found


def is_text(given: str) -> bool:
    """Whether Postgres can hold it: no NUL, and no lone surrogates."""
    try:
        return b"\0" not in given.encode()
    except UnicodeEncodeError:
        return False
