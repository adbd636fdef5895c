"""Who may do what at the admin port: Bearer tokens, each with a role."""

from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import IntEnum
from hashlib import sha256
from secrets import compare_digest
from typing import Final, TypeVar

import structlog
from aiohttp import web

from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.http.answers import error, limited
from appservice_bridge.http.login_failures import LoginFailures

log = structlog.get_logger(__name__)

_Route = TypeVar("_Route", bound=Callable[..., Awaitable[web.StreamResponse]])
_NEEDS: Final = "needs_role"
_OPERATOR: ContextVar["Operator"] = ContextVar("operator")


class Role(IntEnum):
    """What a token allows; each role may do what those below it may."""

    NOBODY = 0
    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One who holds a token.

    Attributes:
        token: reads it anew each time; a BridgeError if it cannot.
    """

    name: str
    role: Role
    token: Callable[[], str] = field(repr=False)


def needs(role: Role) -> Callable[[_Route], _Route]:
    """Mark a route with the role it needs; one that is not marked needs ADMIN."""

    def marked(route: _Route) -> _Route:
        setattr(route, _NEEDS, role)
        return route

    return marked


def role_needed(handler: object) -> Role:
    """What a route's handler was marked with."""
    return Role(getattr(handler, _NEEDS, Role.ADMIN))


def whoever_asks() -> Operator:
    """Whose token came with the request that is being answered, and was let through."""
    return _OPERATOR.get()


class AdminAuth:
    """Tells operators by the token they show, in the Authorization header and nowhere else."""

    def __init__(self, operators: Iterable[Operator]) -> None:
        self._operators = tuple(operators)
        self._failures = LoginFailures()

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Let only those through who may use the route.

        What is not there is 404 to all: the routes are no secret.
        """
        route = request.match_info
        needed = role_needed(route.handler)
        if route.http_exception is not None or needed is Role.NOBODY:
            return await handler(request)
        operator = self._shown(request)
        if operator is None:
            return self._unknown(request)
        if operator.role < needed:
            log.warning("admin.forbidden", operator=operator.name, path=request.path)
            return error(403, "M_FORBIDDEN", f"this needs the role {needed.name.lower()}")
        _OPERATOR.set(operator)
        return await handler(request)

    def _unknown(self, request: web.Request) -> web.Response:
        """A request without any token is no guess."""
        wait = self._failures.failed(request.remote) if "Authorization" in request.headers else 0
        if wait:
            refusal = limited("too many tokens that are none of ours", wait)
        else:
            refusal = error(401, "M_UNKNOWN_TOKEN", "an admin token is missing, or none of ours")
            log.warning("admin.unknown_token", address=request.remote, path=request.path)
        refusal.headers["WWW-Authenticate"] = "Bearer"
        return refusal

    def _shown(self, request: web.Request) -> Operator | None:
        """Whose token it is; all are compared, so that the time says nothing."""
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        shown = _digest(bearer.strip() if scheme.lower() == "bearer" else "")
        found: Operator | None = None
        for operator in self._operators:
            try:
                expected = _digest(operator.token())
            except BridgeError:
                log.error("admin.token_not_read", operator=operator.name)
                continue
            if compare_digest(shown, expected):
                found = operator
        return found


def _digest(token: str) -> bytes:
    return sha256(token.encode(errors="surrogateescape")).digest()
