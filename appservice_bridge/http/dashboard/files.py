"""Serves the dashboard's files from the package: each is read once, when a worker starts."""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

from aiohttp import ETag, web

from appservice_bridge.http.admin_auth import Role, needs

PAGE: Final = "index.html"
ROOT: Final = "/dashboard/"

_TYPES: Final = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}

# The page holds a token that can stop every lane: nothing but its own files runs in it, nothing
# turns text into markup, and nobody shows it in a frame.
_HEADERS: Final = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of the page.

    Attributes:
        etag: changes with the content, so that a browser never mixes two releases.
    """

    content: bytes
    content_type: str
    etag: str


class Dashboard:
    """The page at `/`, and what it loads below `/dashboard/`; both need no token.

    What they show comes from the API, which needs one.
    """

    def __init__(self) -> None:
        page = files("appservice_bridge.http.dashboard") / "page"
        self._files = {name: _read(at) for name, at in _walk(page) if _type_of(name)}

    def add_to(self, app: web.Application) -> None:
        """One route per file: what is not one of them is not found."""
        app.router.add_get("/", _serving(self._files[PAGE]))
        for name, file in self._files.items():
            if name != PAGE:
                app.router.add_get(ROOT + name, _serving(file))


def _serving(file: File) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    @needs(Role.NOBODY)
    async def serve(request: web.Request) -> web.StreamResponse:
        known = request.if_none_match or ()
        unchanged = any(etag.value in (file.etag, "*") for etag in known)
        answer = web.Response(headers=_HEADERS, status=304 if unchanged else 200)
        answer.etag = ETag(value=file.etag)
        if not unchanged:
            answer.body = file.content
            answer.content_type, answer.charset = file.content_type, "utf-8"
        return answer

    return serve


def _walk(folder: Traversable, before: str = "") -> Iterator[tuple[str, Traversable]]:
    for each in folder.iterdir():
        if each.is_dir():
            yield from _walk(each, f"{before}{each.name}/")
        else:
            yield before + each.name, each


def _read(at: Traversable) -> File:
    content = at.read_bytes()
    return File(
        content=content, content_type=_type_of(at.name), etag=sha256(content).hexdigest()[:32]
    )


def _type_of(name: str) -> str:
    """Empty for what is not served: licences and notes."""
    return _TYPES.get(name[name.rfind(".") :], "")
