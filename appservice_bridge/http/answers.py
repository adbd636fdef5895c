"""Answers in the shape that Matrix gives errors."""

from aiohttp import web


def error(status: int, errcode: str, message: str) -> web.Response:
    """A standard error response."""
    return web.json_response({"errcode": errcode, "error": message}, status=status)
