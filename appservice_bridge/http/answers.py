"""Answers in the shape that Matrix gives errors."""

import traceback
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiohttp import web

log = structlog.get_logger(__name__)

_ERRCODES: Final = {404: "M_UNRECOGNIZED", 405: "M_UNRECOGNIZED", 413: "M_TOO_LARGE"}


def error(status: int, errcode: str, message: str) -> web.Response:
    """A standard error response."""
    return web.json_response({"errcode": errcode, "error": message}, status=status)


def limited(message: str, seconds: float) -> web.Response:
    """A 429 that says when to come again."""
    told = {"errcode": "M_LIMIT_EXCEEDED", "error": message, "retry_after_ms": seconds * 1000}
    return web.json_response(told, status=429, headers={"Retry-After": f"{seconds:.0f}"})


@web.middleware
async def matrix_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Give every refusal that shape, and let no fault of ours look like one of the request.

    A fault is answered 503, so that the homeserver asks again. Of its error only the type and the
    place are logged: a text may hold a row.
    """
    try:
        return await handler(request)
    except web.HTTPException as refusal:
        return error(refusal.status, _ERRCODES.get(refusal.status, "M_UNKNOWN"), refusal.reason)
    except ConnectionError:
        log.info("request.cut")  # whoever asked is gone, and nobody hears the answer
        return error(503, "M_UNKNOWN", "the connection was lost")
    except Exception as fault:
        place = traceback.extract_tb(fault.__traceback__)[-1]
        where = f"{place.filename}:{place.lineno}"
        log.error("request.failed", error=type(fault).__name__, where=where)
        return error(503, "M_UNKNOWN", "appservice_bridge failed; send it again")
